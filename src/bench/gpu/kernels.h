#pragma once

#include <cstdint>

#include <shunt/pack/cuda.h>

namespace shunt::bench {

/// A kernel of one thread that holds `stream` until *word (host memory that the device reads) is at least `epoch`, or
/// `patience_ns` have passed. Errors: Errc::internal.
void launch_gate(const std::uint64_t* word, std::uint64_t epoch, std::uint64_t patience_ns,
                 cuda::Stream stream);

}  // namespace shunt::bench

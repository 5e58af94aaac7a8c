#pragma once

#include <cstdint>

#include <shunt/pack/cuda.h>

namespace shunt::bench {

/// A kernel of one thread that holds `stream` until words[0] (host memory that the device reaches) is at least `epoch`.
/// Where `patience_ns` pass before, it sets words[1] to `epoch` and lets the stream go. Errors: Errc::internal.
void launch_gate(std::uint64_t* words, std::uint64_t epoch, std::uint64_t patience_ns, cuda::Stream stream);

}  // namespace shunt::bench

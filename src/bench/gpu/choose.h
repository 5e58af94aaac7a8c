#pragma once

#include <string>

#include <shunt/bench/options.h>

#include "runtime.h"

namespace shunt::bench {

/// Settles options.device: "cpu", or "cuda" with the registry, transport and rank mode for GPUs. Asks CUDA in a child
/// process, since ranks are forked later.
/// Result: empty, or why it is not the device that was asked for.
/// Errors: Errc::invalid_argument for a name that is none.
[[nodiscard]] std::string choose_device(AllToAllBenchOptions& options);

[[nodiscard]] GpuTerms gpu_terms(const AllToAllBenchOptions& options);

}  // namespace shunt::bench

#pragma once

#include <cstdint>

#include "context_kernels.h"

namespace shunt::test {

/// Runs a kernel of context_kernels.h on the current device and waits for it. Result: null, or what CUDA says.
template <class Kernel>
[[nodiscard]] const char* run_on_gpu(std::int32_t blocks, const typename Kernel::Args& args);

}  // namespace shunt::test

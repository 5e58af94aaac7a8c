#pragma once

#include <shunt/pack/cuda.h>

/// What callers may pass. Apart from the steps so that nothing that nvcc compiles needs to make a sentence.
namespace shunt::cuda::detail {

void check(const PlanInput& input);
void check(const PlanInput& input, const Plan& plan, const void* workspace, LaunchLimit limit);
void check(const Gather& gather, LaunchLimit limit);
void check(const Scatter& scatter, LaunchLimit limit);
void check(const Combine& combine, LaunchLimit limit);

/// Raises what CUDA said about a launch: unavailable where no device can run it, else internal.
[[noreturn]] void raise_launch_error(const char* kernel, bool no_device, const char* text);

}  // namespace shunt::cuda::detail

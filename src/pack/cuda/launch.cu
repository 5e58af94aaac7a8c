// The calls of <shunt/pack/cuda.h> on a CUDA stream.
#include <cuda_runtime.h>

#include <string>

#include <shunt/pack/cuda.h>

#include "checks.h"
#include "cuda_launcher.h"
#include "steps.h"

namespace shunt::cuda {

std::string unavailable_reason() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return std::string("cudaGetDeviceCount: ") + cudaGetErrorString(error);
  return devices == 0 ? "this machine has no CUDA device" : "";
}

void make_plan(const PlanInput& input, const Plan& plan, void* workspace, Stream stream, LaunchLimit limit) {
  detail::check(input, plan, workspace, limit);
  detail::CudaLauncher launcher(stream);
  detail::make_plan(launcher, input, plan, workspace, limit);
}

void gather(const Gather& gather, Stream stream, LaunchLimit limit) {
  detail::check(gather, limit);
  detail::CudaLauncher launcher(stream);
  detail::gather(launcher, gather, limit);
}

void scatter(const Scatter& scatter, Stream stream, LaunchLimit limit) {
  detail::check(scatter, limit);
  detail::CudaLauncher launcher(stream);
  detail::scatter(launcher, scatter, limit);
}

void combine(const Combine& combine, Stream stream, LaunchLimit limit) {
  detail::check(combine, limit);
  detail::CudaLauncher launcher(stream);
  detail::combine(launcher, combine, limit);
}

}  // namespace shunt::cuda

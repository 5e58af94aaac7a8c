// The calls of <shunt/pack/cuda.h> on a CUDA stream.
#include <cuda_runtime.h>

#include <shunt/device/cuda_context.h>
#include <shunt/pack/cuda.h>

#include "checks.h"
#include "steps.h"

namespace shunt::cuda {
namespace {

static_assert(device::KernelContext<device::CudaContext>);

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    enter(const __grid_constant__ typename Kernel::Args args) {
  device::CudaContext context;
  Kernel::run(context, args);
}

bool means_no_device(cudaError_t error) {
  return error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
         error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ||
         error == cudaErrorSystemDriverMismatch || error == cudaErrorStubLibrary;
}

void require(const char* what, cudaError_t error) {
  if (error != cudaSuccess)
    detail::raise_launch_error(what, means_no_device(error), cudaGetErrorString(error));
}

class CudaLauncher {
 public:
  explicit CudaLauncher(Stream stream) : stream_(stream) {
    int device = 0;
    require("cudaGetDevice", cudaGetDevice(&device));
    require("cudaDeviceGetAttribute",
            cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, device));
  }
  template <class Kernel>
  void launch(const device::LaunchShape& shape, const typename Kernel::Args& args) {
    enter<Kernel><<<static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.threads),
                    static_cast<std::size_t>(shape.shared_bytes), stream_>>>(args);
    require(Kernel::kName, cudaGetLastError());
  }
  [[nodiscard]] std::int32_t processors() const { return processors_; }

 private:
  Stream stream_;
  int processors_ = 1;
};

}  // namespace

std::string unavailable_reason() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return std::string("cudaGetDeviceCount: ") + cudaGetErrorString(error);
  return devices == 0 ? "this machine has no CUDA device" : "";
}

void make_plan(const PlanInput& input, const Plan& plan, void* workspace, Stream stream, LaunchLimit limit) {
  detail::check(input, plan, workspace, limit);
  CudaLauncher launcher(stream);
  detail::make_plan(launcher, input, plan, workspace, limit);
}

void gather(const Gather& gather, Stream stream, LaunchLimit limit) {
  detail::check(gather, limit);
  CudaLauncher launcher(stream);
  detail::gather(launcher, gather, limit);
}

void scatter(const Scatter& scatter, Stream stream, LaunchLimit limit) {
  detail::check(scatter, limit);
  CudaLauncher launcher(stream);
  detail::scatter(launcher, scatter, limit);
}

void combine(const Combine& combine, Stream stream, LaunchLimit limit) {
  detail::check(combine, limit);
  CudaLauncher launcher(stream);
  detail::combine(launcher, combine, limit);
}

}  // namespace shunt::cuda

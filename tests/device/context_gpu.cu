// Apart from the test so that nvcc need not read GoogleTest.
#include <cuda_runtime.h>

#include <shunt/device/cuda_context.h>

#include "context_gpu.h"

namespace shunt::test {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    enter(const __grid_constant__ typename Kernel::Args args) {
  device::CudaContext context;
  Kernel::run(context, args);
}

}  // namespace

template <class Kernel>
const char* run_on_gpu(std::int32_t blocks, const typename Kernel::Args& args) {
  enter<Kernel><<<static_cast<unsigned>(blocks), Kernel::kThreads, Kernel::kSharedBytes>>>(args);
  cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

template const char* run_on_gpu<WarpOperations>(std::int32_t, const WarpOperations::Args&);
template const char* run_on_gpu<Counters>(std::int32_t, const Counters::Args&);
template const char* run_on_gpu<Exchange>(std::int32_t, const Exchange::Args&);
template const char* run_on_gpu<Conversions>(std::int32_t, const Conversions::Args&);

}  // namespace shunt::test

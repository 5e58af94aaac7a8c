#pragma once

// A CUDA stream as a launcher for steps.h. For nvcc only.
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/cuda_context.h>
#include <shunt/pack/cuda.h>

#include "checks.h"
#include "known_blocks.h"

namespace shunt::cuda::detail {

static_assert(device::KernelContext<device::CudaContext>);

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads)
    enter(const __grid_constant__ typename Kernel::Args args) {
  device::CudaContext context;
  Kernel::run(context, args);
}

inline bool means_no_device(cudaError_t error) {
  return error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
         error == cudaErrorNoKernelImageForDevice || error == cudaErrorUnsupportedPtxVersion ||
         error == cudaErrorSystemDriverMismatch || error == cudaErrorStubLibrary;
}

inline void require(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  // Else whoever goes on afterwards would find it again behind the next launch.
  static_cast<void>(cudaGetLastError());
  raise_launch_error(what, means_no_device(error), cudaGetErrorString(error));
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
  /// Of the kernel with so much shared memory. The GPUs of a process are taken to be of one kind.
  template <class Kernel>
  [[nodiscard]] std::int32_t blocks_per_processor(std::int32_t shared_bytes) const {
    static KnownBlocks known;
    return known.find(shared_bytes, [shared_bytes] {
      int blocks = 0;
      require(Kernel::kName,
              cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, enter<Kernel>, Kernel::kThreads,
                                                            static_cast<std::size_t>(shared_bytes)));
      return blocks > 0 ? blocks : 1;
    });
  }

 private:
  Stream stream_;
  int processors_ = 1;
};

}  // namespace shunt::cuda::detail

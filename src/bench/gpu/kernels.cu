// What the benchmark itself runs on a GPU: the touch phase, and the gate in front of a phase.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include <shunt/core/error.h>
#include <shunt/device/cuda_context.h>

#include "kernels.h"
#include "touch_kernel.h"

namespace shunt::bench {
namespace {

__global__ void __launch_bounds__(TouchRows::kThreads) touch_rows(const __grid_constant__ GpuTouch args) {
  device::CudaContext context;
  TouchRows::run(context, args);
}

__global__ void gate(std::uint64_t* words, std::uint64_t epoch, std::uint64_t patience_ns) {
  device::CudaContext context;
  const std::uint64_t begin = context.clock_ns();
  while (context.load_acquire(device::Scope::system, words) < epoch) {
    if (context.clock_ns() - begin >= patience_ns) {
      context.store_release(device::Scope::system, words + 1, epoch);
      return;
    }
    context.pause();
  }
}

void require(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw Error(Errc::internal, std::string(what) + ": " + cudaGetErrorString(error));
}

}  // namespace

void touch_on_stream(const GpuTouch& touch, cuda::Stream stream) {
  if (touch.max_rows == 0 || touch.num_experts == 0 || touch.hidden == 0) return;
  int device = 0;
  int processors = 1;
  require("cudaGetDevice", cudaGetDevice(&device));
  require("cudaDeviceGetAttribute",
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  const std::int64_t tasks = touch.max_rows * ((touch.hidden + TouchRows::kPart - 1) / TouchRows::kPart);
  const std::int64_t warps = TouchRows::kThreads / device::kWarpSize;
  const std::int64_t blocks = std::clamp<std::int64_t>((tasks + warps - 1) / warps, 1, processors * 8);
  touch_rows<<<static_cast<unsigned>(blocks), static_cast<unsigned>(TouchRows::kThreads), 0, stream>>>(touch);
  require("touch_rows", cudaGetLastError());
}

void launch_gate(std::uint64_t* words, std::uint64_t epoch, std::uint64_t patience_ns, cuda::Stream stream) {
  gate<<<1, 1, 0, stream>>>(words, epoch, patience_ns);
  require("gate", cudaGetLastError());
}

}  // namespace shunt::bench

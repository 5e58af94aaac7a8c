#pragma once

// What every engine on CUDA streams has: memory that the host sees, copies, launches. For nvcc only.
#include <cuda_runtime.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <thread>

#include <shunt/core/error.h>

#include "frame.h"
#include "pack/cuda/cuda_launcher.h"

namespace shunt::cuda::detail {

/// Loads kernels instead of launching them. With lazy loading (CUDA 12.2 on) the first launch of a kernel loads it, which
/// may wait for kernels that run: for a peer's on the same GPU, which waits for the kernel that is to be loaded.
class LoadingLauncher {
 public:
  template <class Kernel>
  static void launch(const device::LaunchShape& /*shape*/, const typename Kernel::Args& /*args*/) {
    cudaFuncAttributes attributes;
    require(Kernel::kName, cudaFuncGetAttributes(&attributes, enter<Kernel>));
  }
  [[nodiscard]] static std::int32_t processors() { return 1; }
  template <class Kernel>
  [[nodiscard]] static std::int32_t blocks_per_processor(std::int32_t /*shared_bytes*/) {
    return 1;
  }
};

/// The device that was current when this was made; calls are made with it current.
class CudaDevice {
 public:
  CudaDevice() {
    void* memory = nullptr;
    require("cudaHostAlloc",
            cudaHostAlloc(&memory, sizeof(Status), cudaHostAllocMapped | cudaHostAllocPortable));
    status_ = new (memory) Status{};
    void* on_device = nullptr;
    require("cudaHostGetDevicePointer", cudaHostGetDevicePointer(&on_device, memory, 0));
    status_on_device_ = static_cast<Status*>(on_device);
    require("cudaStreamCreate", cudaStreamCreateWithFlags(&uploads_, cudaStreamNonBlocking));
  }
  ~CudaDevice() {
    static_cast<void>(cudaStreamDestroy(uploads_));
    static_cast<void>(cudaFreeHost(status_));
  }
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  [[nodiscard]] Status* status() { return status_; }
  [[nodiscard]] Status* status_on_device() { return status_on_device_; }
  /// CUDA can ask a stream or an event without waiting, but not a device, and the streams are the caller's, who may have
  /// destroyed them: so a thread waits. One that is left behind ends with the kernels.
  static void wait_idle(std::chrono::milliseconds deadline) {
    int device = 0;
    require("cudaGetDevice", cudaGetDevice(&device));
    const auto waited = std::make_shared<std::promise<cudaError_t>>();
    std::future<cudaError_t> outcome = waited->get_future();
    std::thread([device, waited] {
      const cudaError_t chosen = cudaSetDevice(device);
      waited->set_value(chosen == cudaSuccess ? cudaDeviceSynchronize() : chosen);
    }).detach();
    if (outcome.wait_for(deadline) != std::future_status::ready)
      throw Error(Errc::timeout, "the GPU still runs kernels of this process " +
                                     std::to_string(deadline.count()) +
                                     " ms after a rank was lost, so AllToAll cannot move to other memory");
    require("cudaDeviceSynchronize", outcome.get());
  }
  /// On a stream that waits for no other: the default one waits for kernels of ranks that share the GPU.
  void upload(void* to, const void* from, std::int64_t bytes) {
    require("cudaMemcpyAsync",
            cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, uploads_));
    // Streams of the caller do not wait for it.
    require("cudaStreamSynchronize", cudaStreamSynchronize(uploads_));
  }
  [[nodiscard]] static LoadingLauncher loader() { return {}; }
  [[nodiscard]] static CudaLauncher launcher(Stream stream) { return CudaLauncher(stream); }

 private:
  Status* status_ = nullptr;
  Status* status_on_device_ = nullptr;
  cudaStream_t uploads_ = nullptr;
};

}  // namespace shunt::cuda::detail

#pragma once

// What every engine on CUDA streams has: memory that the host sees, copies, launches. For nvcc only.
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

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
  }
  ~CudaDevice() { cudaFreeHost(status_); }
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  [[nodiscard]] Status* status() { return status_; }
  [[nodiscard]] Status* status_on_device() { return status_on_device_; }
  static void wait_idle() { require("cudaDeviceSynchronize", cudaDeviceSynchronize()); }
  static void upload(void* to, const void* from, std::int64_t bytes) {
    require("cudaMemcpy", cudaMemcpy(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice));
    // Pageable memory may still be on its way when the copy returns, and streams of the caller do not wait for it.
    require("cudaStreamSynchronize", cudaStreamSynchronize(nullptr));
  }
  [[nodiscard]] static LoadingLauncher loader() { return {}; }
  [[nodiscard]] static CudaLauncher launcher(Stream stream) { return CudaLauncher(stream); }

 private:
  Status* status_ = nullptr;
  Status* status_on_device_ = nullptr;
};

}  // namespace shunt::cuda::detail

#pragma once

// What both plugins need of CUDA itself. Compiled by nvcc only.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <string>

#include <shunt/core/error.h>
#include <shunt/device/cuda_context.h>

#include "heap/plugin.h"
#include "heap/symmetric_heap.h"

namespace shunt::heap {

inline void require_cuda(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw Error(Errc::internal, std::string(what) + ": " + cudaGetErrorString(error));
}

/// Makes the GPU of the rank the current one of this thread, and says why there is none. Devices in turn, as in
/// HeapOptions::devices.
inline Preflight choose_gpu(const HeapOptions& options) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    return {.reason = std::string("cudaGetDeviceCount: ") + cudaGetErrorString(error)};
  if (count == 0) return {.reason = "this machine has no CUDA device"};
  const auto& listed = options.devices;
  const std::int32_t ordinal = listed.empty()
                                   ? options.local_rank % count
                                   : listed[static_cast<std::size_t>(options.local_rank) % listed.size()];
  if (ordinal < 0 || ordinal >= count) {
    return {.reason = "GPU " + std::to_string(ordinal) + " was asked for, but this process sees " +
                      std::to_string(count) + " (SHUNT_DEVICE, CUDA_VISIBLE_DEVICES)"};
  }
  cudaDeviceProp facts{};
  if (const cudaError_t one = cudaSetDevice(ordinal); one != cudaSuccess)
    return {.reason = std::string("cudaSetDevice: ") + cudaGetErrorString(one)};
  if (const cudaError_t one = cudaGetDeviceProperties(&facts, ordinal); one != cudaSuccess)
    return {.reason = std::string("cudaGetDeviceProperties: ") + cudaGetErrorString(one)};
  Preflight found;
  static_assert(sizeof facts.uuid == sizeof found.device);
  std::memcpy(found.device.data(), &facts.uuid, sizeof facts.uuid);
#if CUDART_VERSION >= 12030
  int mps = 0;
  found.shared_by_mps =
      cudaDeviceGetAttribute(&mps, cudaDevAttrMpsEnabled, ordinal) == cudaSuccess && mps != 0;
  static_cast<void>(cudaGetLastError());  // drivers that do not know the attribute
#endif
  return found;
}

/// Stores a word for peers after everything that the stream did before: the end of a kernel or copy makes its effects
/// visible to what follows in the stream, and the fence hands that on to whoever reads the word.
static __global__ void store_word(std::uint64_t* word, std::uint64_t value) {
  device::CudaContext context;
  context.fence(device::Scope::system);
  context.store_release(device::Scope::system, word, value);
}

/// A stream for what a rank's host starts, and another one to look at words meanwhile.
class GpuQueue {
 public:
  GpuQueue() {
    require_cuda("cudaGetDevice", cudaGetDevice(&device_));
    require_cuda("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&work_, cudaStreamNonBlocking));
    require_cuda("cudaStreamCreateWithFlags", cudaStreamCreateWithFlags(&look_, cudaStreamNonBlocking));
    require_cuda("cudaMallocHost", cudaMallocHost(reinterpret_cast<void**>(&seen_), sizeof *seen_));
  }
  ~GpuQueue() {
    // At the end of a process CUDA may have gone first; then there is nothing to free.
    static_cast<void>(cudaStreamDestroy(work_));
    static_cast<void>(cudaStreamDestroy(look_));
    static_cast<void>(cudaFreeHost(seen_));
  }
  GpuQueue(const GpuQueue&) = delete;
  GpuQueue& operator=(const GpuQueue&) = delete;

  [[nodiscard]] cudaStream_t stream() const noexcept { return work_; }
  /// The thread that calls may have made another device current.
  void enter() const { require_cuda("cudaSetDevice", cudaSetDevice(device_)); }

  [[nodiscard]] static std::int64_t available() {
    std::size_t free = 0;
    std::size_t total = 0;
    require_cuda("cudaMemGetInfo", cudaMemGetInfo(&free, &total));
    return static_cast<std::int64_t>(free);
  }
  void zero(std::byte* memory, std::int64_t bytes) const {
    require_cuda("cudaMemsetAsync", cudaMemsetAsync(memory, 0, static_cast<std::size_t>(bytes), work_));
    synchronize();
  }
  void copy(void* to, const void* from, std::int64_t bytes) const {
    require_cuda("cudaMemcpyAsync",
                 cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, work_));
  }
  void store(std::byte* word, std::uint64_t value) const {
    store_word<<<1, 1, 0, work_>>>(reinterpret_cast<std::uint64_t*>(word), value);
    require_cuda("store_word", cudaGetLastError());
  }
  [[nodiscard]] std::uint64_t load(const std::byte* word) const {
    return look([&](cudaStream_t stream, std::uint64_t* seen) {
      require_cuda("cudaMemcpyAsync",
                   cudaMemcpyAsync(seen, word, sizeof *seen, cudaMemcpyDeviceToHost, stream));
    });
  }
  /// What start(stream, seen) brings to `seen`, a word of the host that kernels reach too.
  template <class Start>
  [[nodiscard]] std::uint64_t look(const Start& start) const {
    start(look_, seen_);
    require_cuda("cudaStreamSynchronize", cudaStreamSynchronize(look_));
    return *seen_;
  }
  void synchronize() const { require_cuda("cudaStreamSynchronize", cudaStreamSynchronize(work_)); }

 private:
  int device_ = 0;
  cudaStream_t work_ = nullptr;
  cudaStream_t look_ = nullptr;
  std::uint64_t* seen_ = nullptr;  ///< Pinned
};

}  // namespace shunt::heap

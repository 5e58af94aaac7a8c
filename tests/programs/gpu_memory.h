#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::programs {

inline void require(cudaError_t result, const char* what) {
  if (result != cudaSuccess)
    throw Error(Errc::internal, fmt::format("{}: {}", what, cudaGetErrorString(result)));
}

class OwnStream {
 public:
  OwnStream() { require(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~OwnStream() { cudaStreamDestroy(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  [[nodiscard]] cudaStream_t get() const { return stream_; }

  /// Done on return. Not on the default stream, which the other ranks of this process share.
  void copy(void* to, const void* from, std::int64_t bytes, cudaMemcpyKind kind) const {
    if (bytes > 0)
      require(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream_), "cudaMemcpyAsync");
    require(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }
  template <class T>
  [[nodiscard]] std::vector<T> download(const T* from, std::int64_t count) const {
    std::vector<T> to(static_cast<std::size_t>(count));
    copy(to.data(), from, count * static_cast<std::int64_t>(sizeof(T)), cudaMemcpyDeviceToHost);
    return to;
  }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Device memory for what a step passes, asked for once: cudaMalloc and cudaFree may wait for everything on the device, also
/// for the kernel of another rank of this process that waits for this one.
class Arena {
 public:
  explicit Arena(std::int64_t bytes) : bytes_(bytes) {
    require(cudaMalloc(&memory_, static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1))), "cudaMalloc");
  }
  ~Arena() { cudaFree(memory_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  static std::int64_t place(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }
  void clear() { used_ = 0; }
  [[nodiscard]] std::byte* take(std::int64_t bytes) {
    if (used_ + place(bytes) > bytes_)
      throw Error(Errc::internal, fmt::format("a step needs more than the {} bytes set aside", bytes_));
    std::byte* const piece = static_cast<std::byte*>(memory_) + used_;
    used_ += place(bytes);
    return piece;
  }

  /// A copy of `from`, done on return.
  template <class T>
  [[nodiscard]] std::byte* keep(const std::vector<T>& from, const OwnStream& stream) {
    const auto bytes = static_cast<std::int64_t>(from.size() * sizeof(T));
    std::byte* const to = take(bytes);
    stream.copy(to, from.data(), bytes, cudaMemcpyHostToDevice);
    return to;
  }

 private:
  void* memory_ = nullptr;
  std::int64_t bytes_;
  std::int64_t used_ = 0;
};

}  // namespace shunt::programs

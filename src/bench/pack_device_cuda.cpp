#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "gpu/cuda_check.h"
#include "pack_device.h"

namespace shunt::bench {
namespace {

/// The current device and a stream of its own.
class CudaPackDevice final : public PackDevice {
 public:
  CudaPackDevice(cuda::LaunchLimit limit, cuda::Stream stream)
      : limit_(limit), stream_(stream), own_(stream == nullptr) {
    const std::string reason = cuda::unavailable_reason();
    if (!reason.empty()) throw Error(Errc::unavailable, "CUDA kernels cannot run: " + reason);
    if (own_) cuda_require("cudaStreamCreate", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~CudaPackDevice() override {
    cudaStreamSynchronize(stream_);
    for (void* data : memory_) cudaFree(data);
    for (const auto& [begin, end] : events_) {
      cudaEventDestroy(begin);
      cudaEventDestroy(end);
    }
    if (own_) cudaStreamDestroy(stream_);
  }

  [[nodiscard]] std::string description() const override {
    int device = 0;
    int runtime = 0;
    int driver = 0;
    cudaDeviceProp properties{};
    cuda_require("cudaGetDevice", cudaGetDevice(&device));
    cuda_require("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device));
    cuda_require("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&runtime));
    cuda_require("cudaDriverGetVersion", cudaDriverGetVersion(&driver));
    return fmt::format(
        "{}, {} SMs, compute capability {}.{}, L2 {} MiB; CUDA runtime {}.{}, driver for {}.{}",
        properties.name, properties.multiProcessorCount, properties.major, properties.minor,
        properties.l2CacheSize >> 20, runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
  }
  [[nodiscard]] std::int64_t free_bytes() const override {
    std::size_t free = 0;
    std::size_t total = 0;
    cuda_require("cudaMemGetInfo", cudaMemGetInfo(&free, &total));
    return static_cast<std::int64_t>(free);
  }
  [[nodiscard]] void* allocate(std::int64_t bytes) override {
    void* data = nullptr;
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
    cuda_require("cudaMalloc", cudaMalloc(&data, size));
    memory_.push_back(data);
    cuda_require("cudaMemset", cudaMemsetAsync(data, 0, size, stream_));
    return data;
  }
  void write(void* to, const void* from, std::int64_t bytes) override {
    cuda_require("cudaMemcpy",
                 cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream_));
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
  }
  void read(void* to, const void* from, std::int64_t bytes) override {
    cuda_require("cudaMemcpy",
                 cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream_));
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
  }
  void make_plan(const cuda::PlanInput& input, const cuda::Plan& plan, void* workspace) override {
    cuda::make_plan(input, plan, workspace, stream_, limit_);
  }
  void gather(const cuda::Gather& gather) override { cuda::gather(gather, stream_, limit_); }
  void scatter(const cuda::Scatter& scatter) override { cuda::scatter(scatter, stream_, limit_); }
  void combine(const cuda::Combine& combine) override { cuda::combine(combine, stream_, limit_); }
  void copy(void* to, const void* from, std::int64_t bytes) override {
    cuda_require("cudaMemcpy", cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes),
                                               cudaMemcpyDeviceToDevice, stream_));
  }
  void fill(void* to, int value, std::int64_t bytes) override {
    cuda_require("cudaMemset", cudaMemsetAsync(to, value, static_cast<std::size_t>(bytes), stream_));
  }
  void touch(const GpuTouch& touch) override { touch_on_stream(touch, stream_); }

  [[nodiscard]] std::vector<double> time_us(const std::function<void()>& work, std::int64_t warmup,
                                            std::int64_t iterations, bool cold) override {
    while (static_cast<std::int64_t>(events_.size()) < iterations) {
      events_.emplace_back();
      cuda_require("cudaEventCreate", cudaEventCreate(&events_.back().first));
      cuda_require("cudaEventCreate", cudaEventCreate(&events_.back().second));
    }
    if (cold && other_ == nullptr) other_ = allocate(kFlushBytes);
    for (std::int64_t i = -warmup; i < iterations; ++i) {
      if (cold)
        cuda_require("cudaMemset", cudaMemsetAsync(other_, static_cast<int>(i & 0x7f), kFlushBytes, stream_));
      if (i >= 0)
        cuda_require("cudaEventRecord", cudaEventRecord(events_[static_cast<std::size_t>(i)].first, stream_));
      work();
      if (i >= 0)
        cuda_require("cudaEventRecord",
                     cudaEventRecord(events_[static_cast<std::size_t>(i)].second, stream_));
    }
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
    std::vector<double> samples;
    for (std::int64_t i = 0; i < iterations; ++i) {
      const auto& [begin, end] = events_[static_cast<std::size_t>(i)];
      float ms = 0;
      cuda_require("cudaEventElapsedTime", cudaEventElapsedTime(&ms, begin, end));
      samples.push_back(1e3 * static_cast<double>(ms));
    }
    return samples;
  }

 private:
  /// More than the L2 of any GPU.
  static constexpr std::size_t kFlushBytes = std::size_t{256} << 20U;

  cuda::LaunchLimit limit_;
  cudaStream_t stream_ = nullptr;
  bool own_ = true;
  std::vector<void*> memory_;
  std::vector<std::pair<cudaEvent_t, cudaEvent_t>> events_;
  void* other_ = nullptr;
};

}  // namespace

std::unique_ptr<PackDevice> make_cuda_pack_device(cuda::LaunchLimit limit, cuda::Stream stream) {
  return std::make_unique<CudaPackDevice>(limit, stream);
}

}  // namespace shunt::bench

#include <cuda_runtime_api.h>

#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "cuda_check.h"
#include "kernels.h"
#include "nccl_exchange.h"
#include "put_exchange.h"
#include "runtime.h"

namespace shunt::bench {
namespace {

/// More than the L2 of any GPU.
constexpr std::size_t kFlushBytes = std::size_t{256} << 20U;
/// Memory to overwrite, one piece for each device of this process; it goes with the process.
void* flush_memory() {
  static std::mutex mutex;
  static std::map<int, void*> pieces;
  int device = 0;
  cuda_require("cudaGetDevice", cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  void*& piece = pieces[device];
  if (piece == nullptr) cuda_require("cudaMalloc", cudaMalloc(&piece, kFlushBytes));
  return piece;
}

class CudaStream final : public GpuStream {
 public:
  /// patience: a gate that nobody opens opens itself after so long, so that a rank that fails leaves no kernel behind.
  CudaStream(cuda::LaunchLimit limit, std::chrono::nanoseconds patience)
      : limit_(limit), patience_(patience) {
    cuda_require("cudaStreamCreate", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (cudaEvent_t& event : events_) cuda_require("cudaEventCreate", cudaEventCreate(&event));
    void* words = nullptr;
    cuda_require("cudaHostAlloc", cudaHostAlloc(&words, 2 * sizeof(std::uint64_t),
                                                cudaHostAllocMapped | cudaHostAllocPortable));
    words_ = static_cast<std::uint64_t*>(words);
    words_[0] = words_[1] = 0;
    void* seen = nullptr;
    cuda_require("cudaHostGetDevicePointer", cudaHostGetDevicePointer(&seen, words, 0));
    device_words_ = static_cast<std::uint64_t*>(seen);
  }
  ~CudaStream() override {
    open_gate();
    cudaStreamSynchronize(stream_);
    for (const cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
    for (const cudaEvent_t event : events_)
      if (event != nullptr) cudaEventDestroy(event);
    cudaFreeHost(words_);
    cudaStreamDestroy(stream_);
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  [[nodiscard]] cuda::Stream handle() const noexcept override { return stream_; }
  [[nodiscard]] std::unique_ptr<PackDevice> make_device() override {
    return make_cuda_pack_device(limit_, stream_);
  }
  [[nodiscard]] GpuMemory memory() override {
    std::size_t free = 0;
    std::size_t total = 0;
    cuda_require("cudaMemGetInfo", cudaMemGetInfo(&free, &total));
    return {gpu_address(), static_cast<std::int64_t>(free)};
  }
  void record(std::int32_t event) override {
    cuda_require("cudaEventRecord", cudaEventRecord(events_.at(static_cast<std::size_t>(event)), stream_));
  }
  [[nodiscard]] double elapsed_us(std::int32_t from, std::int32_t to) override {
    float ms = 0;
    cuda_require("cudaEventElapsedTime", cudaEventElapsedTime(&ms, events_.at(static_cast<std::size_t>(from)),
                                                              events_.at(static_cast<std::size_t>(to))));
    return 1e3 * static_cast<double>(ms);
  }
  void synchronize(std::chrono::milliseconds deadline) override {
    const auto until = Clock::now() + deadline;
    for (;;) {
      const cudaError_t state = cudaStreamQuery(stream_);
      if (state == cudaSuccess) break;
      if (state != cudaErrorNotReady) cuda_require("work on the stream", state);
      static_cast<void>(cudaGetLastError());  // no error, but the next launch would take it for one
      if (Clock::now() > until)
        throw Error(Errc::timeout,
                    fmt::format("the GPU did not come to the end of a phase within {} ms", deadline.count()));
      std::this_thread::yield();
    }
    // Once, so that what follows on this stream is judged by its own gates.
    if (std::atomic_ref(words_[1]).exchange(0, std::memory_order_acquire) != 0)
      throw Error(
          Errc::timeout,
          fmt::format("the ranks did not all queue a phase within {} ms, so it began without them and its "
                      "time is worth nothing; --launch direct waits for nobody",
                      std::chrono::duration_cast<std::chrono::milliseconds>(patience_).count()));
  }
  void flush() override {
    cuda_require("cudaMemset", cudaMemsetAsync(flush_memory(), ++filler_ & 0x7f, kFlushBytes, stream_));
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
  }
  void begin_capture() override {
    cuda_require("cudaStreamBeginCapture", cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  }
  [[nodiscard]] std::int32_t end_capture() override {
    cudaGraph_t graph = nullptr;
    cuda_require("cudaStreamEndCapture", cudaStreamEndCapture(stream_, &graph));
    cudaGraphExec_t ready = nullptr;
    const cudaError_t made = cudaGraphInstantiate(&ready, graph, 0);
    cudaGraphDestroy(graph);
    cuda_require("cudaGraphInstantiate", made);
    graphs_.push_back(ready);
    // Else the first launch does it, which may wait for the kernel of another rank that waits for this one.
    cuda_require("cudaGraphUpload", cudaGraphUpload(ready, stream_));
    cuda_require("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
    return static_cast<std::int32_t>(graphs_.size()) - 1;
  }
  void replay(std::int32_t graph) override {
    cuda_require("cudaGraphLaunch", cudaGraphLaunch(graphs_.at(static_cast<std::size_t>(graph)), stream_));
  }
  void close_gate() override {
    launch_gate(device_words_, ++epoch_, static_cast<std::uint64_t>(patience_.count()), stream_);
  }
  void open_gate() noexcept override { std::atomic_ref(words_[0]).store(epoch_, std::memory_order_release); }

 private:
  cuda::LaunchLimit limit_;
  std::chrono::nanoseconds patience_;
  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, kEvents> events_{};
  std::vector<cudaGraphExec_t> graphs_;
  std::uint64_t* words_ = nullptr;         ///< The gate, and the last one that gave up; as the host and
  std::uint64_t* device_words_ = nullptr;  ///< as the device reaches them
  std::uint64_t epoch_ = 0;
  int filler_ = 0;
};

}  // namespace

GpuRuntime cuda_runtime(const GpuTerms& terms) {
  GpuRuntime runtime;
  const cuda::LaunchLimit limit{terms.max_blocks};
  runtime.make_stream = [limit](const MethodContext& context) {
    // A rank that does not come is reported by the ranks' own meeting first, which has the same deadline.
    return std::make_unique<CudaStream>(limit, context.settings.deadline + std::chrono::seconds(2));
  };
  runtime.of(Carrier::nccl) = {.unavailable = nccl_unavailable(), .unsuited = {}, .make = make_nccl_exchange};
  // Whether the library can be loaded is found out by the transport that it is.
  runtime.of(Carrier::nvshmem) = {
      .unavailable =
          SHUNT_HAVE_NVSHMEM != 0
              ? ""
              : "this build has no NVSHMEM (Python wheel nvidia-nvshmem-cu13, CMake option SHUNT_NVSHMEM)",
      .unsuited = nvshmem_unsuited,
      .make = make_nvshmem_exchange};
  return runtime;
}

std::int32_t gpu_count() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

}  // namespace shunt::bench

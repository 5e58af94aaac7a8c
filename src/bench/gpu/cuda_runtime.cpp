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
#include "runtime.h"

namespace shunt::bench {
namespace {

/// More than the L2 of any GPU.
constexpr std::size_t kFlushBytes = std::size_t{256} << 20U;
/// A gate that nobody opens opens itself, so that a rank that fails leaves no kernel behind.
constexpr std::uint64_t kGatePatienceNs = 2'000'000'000;

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
  explicit CudaStream(cuda::LaunchLimit limit) : limit_(limit) {
    cuda_require("cudaStreamCreate", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    for (cudaEvent_t& event : events_) cuda_require("cudaEventCreate", cudaEventCreate(&event));
    void* word = nullptr;
    cuda_require("cudaHostAlloc",
                 cudaHostAlloc(&word, sizeof(std::uint64_t), cudaHostAllocMapped | cudaHostAllocPortable));
    word_ = static_cast<std::uint64_t*>(word);
    *word_ = 0;
    void* seen = nullptr;
    cuda_require("cudaHostGetDevicePointer", cudaHostGetDevicePointer(&seen, word, 0));
    device_word_ = static_cast<std::uint64_t*>(seen);
  }
  ~CudaStream() override {
    open_gate();
    cudaStreamSynchronize(stream_);
    for (const cudaGraphExec_t graph : graphs_) cudaGraphExecDestroy(graph);
    for (const cudaEvent_t event : events_)
      if (event != nullptr) cudaEventDestroy(event);
    cudaFreeHost(word_);
    cudaStreamDestroy(stream_);
  }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;

  [[nodiscard]] cuda::Stream handle() const noexcept override { return stream_; }
  [[nodiscard]] std::unique_ptr<PackDevice> make_device() override {
    return make_cuda_pack_device(limit_, stream_);
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
      if (state == cudaSuccess) return;
      if (state != cudaErrorNotReady) cuda_require("work on the stream", state);
      if (Clock::now() > until)
        throw Error(Errc::timeout,
                    fmt::format("the GPU did not come to the end of a phase within {} ms", deadline.count()));
      std::this_thread::yield();
    }
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
    return static_cast<std::int32_t>(graphs_.size()) - 1;
  }
  void replay(std::int32_t graph) override {
    cuda_require("cudaGraphLaunch", cudaGraphLaunch(graphs_.at(static_cast<std::size_t>(graph)), stream_));
  }
  void close_gate() override { launch_gate(device_word_, ++epoch_, kGatePatienceNs, stream_); }
  void open_gate() noexcept override { std::atomic_ref(*word_).store(epoch_, std::memory_order_release); }

 private:
  cuda::LaunchLimit limit_;
  cudaStream_t stream_ = nullptr;
  std::array<cudaEvent_t, kEvents> events_{};
  std::vector<cudaGraphExec_t> graphs_;
  std::uint64_t* word_ = nullptr;         ///< The gate, as the host and
  std::uint64_t* device_word_ = nullptr;  ///< as the device reaches it
  std::uint64_t epoch_ = 0;
  int filler_ = 0;
};

}  // namespace

GpuRuntime cuda_runtime(const GpuTerms& terms) {
  GpuRuntime runtime;
  const cuda::LaunchLimit limit{terms.max_blocks};
  runtime.make_stream = [limit](const MethodContext&) { return std::make_unique<CudaStream>(limit); };
  runtime.exchange_unavailable = nccl_unavailable();
  runtime.make_exchange = make_nccl_exchange;
  return runtime;
}

std::int32_t gpu_count() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

}  // namespace shunt::bench

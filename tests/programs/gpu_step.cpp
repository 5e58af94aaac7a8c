#include <cuda_runtime_api.h>

#include <optional>
#include <utility>
#include <vector>

#include <shunt/alltoall/cuda.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

#include "programs/bench_step.h"
#include "programs/gpu_memory.h"

namespace shunt::programs {
namespace {

class Event {
 public:
  Event() { require(cudaEventCreate(&event_), "cudaEventCreate"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  [[nodiscard]] cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class GpuStep final : public BenchStep {
 public:
  GpuStep(Transport& transport, const Point& point, const Options& options)
      : config_(config_of(point, options)),
        object_(transport, config_),
        input_(make_input(point, options, transport.world().rank)),
        memory_(bytes_needed()),
        tokens_(keep(input_.tokens)),
        scales_(input_.scales.empty() ? nullptr : keep(input_.scales)),
        ids_(keep(input_.ids)),
        weights_(keep(input_.weights)),
        out_(memory_.take(out_bytes())) {
    const cuda::DeviceRows results = object_.expert_output();
    require(
        cudaMemsetAsync(results.data, 0, static_cast<std::size_t>(object_.max_rows() * results.stride_bytes),
                        stream_.get()),
        "cudaMemsetAsync");
    require(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
  }

  double time_us(std::initializer_list<Call> calls) override {
    require(cudaEventRecord(begin_.get(), stream_.get()), "cudaEventRecord");
    for (const Call call : calls) make(call);
    require(cudaEventRecord(end_.get(), stream_.get()), "cudaEventRecord");
    // The kernels have deadlines of their own, which check() tells of.
    require(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize");
    object_.check();
    float ms = 0;
    require(cudaEventElapsedTime(&ms, begin_.get(), end_.get()), "cudaEventElapsedTime");
    return static_cast<double>(ms) * 1e3;
  }

 private:
  [[nodiscard]] std::int64_t out_bytes() const {
    return input_.count * config_.hidden * dtype_bytes(config_.out_dtype);
  }
  [[nodiscard]] std::int64_t bytes_needed() const {
    const auto of = [](const auto& values) {
      return Arena::place(static_cast<std::int64_t>(values.size() * sizeof values[0]));
    };
    return of(input_.tokens) + of(input_.scales) + of(input_.ids) + of(input_.weights) +
           Arena::place(out_bytes());
  }
  template <class T>
  std::byte* keep(const std::vector<T>& from) {
    return memory_.keep(from, stream_);
  }
  [[nodiscard]] cuda::DeviceRows rows(std::byte* data, DType dtype) const {
    return {.data = data, .dtype = dtype, .stride_bytes = config_.hidden * dtype_bytes(dtype)};
  }

  void make(Call call) {
    const cuda::Stream stream = stream_.get();
    switch (call) {
      case Call::dispatch_send:
        dispatched_.emplace(object_.dispatch_send(
            {.tokens = rows(tokens_, config_.token_dtype), .num_tokens = input_.count, .scales = scales_},
            {.data = ids_}, stream));
        return;
      case Call::dispatch_recv:
        object_.dispatch_recv(std::move(*dispatched_), stream);
        return;
      case Call::combine_send:
        combined_.emplace(object_.combine_send(object_.expert_output(), stream));
        return;
      case Call::combine_recv:
        object_.combine_recv(std::move(*combined_), {.data = reinterpret_cast<const float*>(weights_)},
                             rows(out_, config_.out_dtype), stream);
    }
  }

  AllToAllConfig config_;
  cuda::AllToAll object_;
  StepInput input_;
  OwnStream stream_;
  Arena memory_;
  std::byte* tokens_;
  std::byte* scales_;
  std::byte* ids_;
  std::byte* weights_;
  std::byte* out_;
  Event begin_;
  Event end_;
  std::optional<cuda::Sent<Half::dispatch>> dispatched_;
  std::optional<cuda::Sent<Half::combine>> combined_;
};

}  // namespace

std::string gpu_steps_missing() {
  return {};
}

std::unique_ptr<BenchStep> make_gpu_step(Transport& transport, const Point& point, const Options& options) {
  return std::make_unique<GpuStep>(transport, point, options);
}

}  // namespace shunt::programs

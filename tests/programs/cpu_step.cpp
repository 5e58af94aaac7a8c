#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include <shunt/alltoall/all_to_all.h>

#include "programs/bench_step.h"

namespace shunt::programs {
namespace {

class CpuStep final : public BenchStep {
 public:
  CpuStep(Transport& transport, const Point& point, const Options& options)
      : config_(config_of(point, options)),
        object_(transport, config_),
        input_(make_input(point, options, transport.world().rank)),
        out_(static_cast<std::size_t>(input_.count * config_.hidden * dtype_bytes(config_.out_dtype))) {
    const MutableRows results = object_.expert_output();
    std::fill_n(results.data, results.rows * results.row_stride_bytes, std::byte{0});
  }

  double time_us(std::initializer_list<Call> calls) override {
    const auto start = Clock::now();
    for (const Call call : calls) make(call);
    return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
  }

 private:
  void make(Call call) {
    switch (call) {
      case Call::dispatch_send:
        dispatched_.emplace(object_.dispatch_send(
            {.tokens = Rows(input_.tokens.data(), input_.count, config_.hidden, config_.token_dtype),
             .scales = input_.scales.empty() ? nullptr : input_.scales.data()},
            View2<const std::int32_t>(input_.ids.data(), input_.count, config_.top_k)));
        return;
      case Call::dispatch_recv:
        rows_ = object_.dispatch_recv(std::move(*dispatched_)).starts.back();
        return;
      case Call::combine_send: {
        const MutableRows results = object_.expert_output();
        combined_.emplace(object_.combine_send(
            Rows(results.data, rows_, config_.hidden, config_.expert_dtype, results.row_stride_bytes)));
        return;
      }
      case Call::combine_recv:
        object_.combine_recv(std::move(*combined_),
                             View2<const float>(input_.weights.data(), input_.count, config_.top_k),
                             MutableRows(out_.data(), input_.count, config_.hidden, config_.out_dtype));
    }
  }

  AllToAllConfig config_;
  AllToAll object_;
  StepInput input_;
  std::vector<std::byte> out_;
  std::int64_t rows_ = 0;
  std::optional<Sent<Half::dispatch>> dispatched_;
  std::optional<Sent<Half::combine>> combined_;
};

}  // namespace

std::unique_ptr<BenchStep> make_cpu_step(Transport& transport, const Point& point, const Options& options) {
  return std::make_unique<CpuStep>(transport, point, options);
}

}  // namespace shunt::programs

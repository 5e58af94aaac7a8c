#include "overlap_methods.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include <shunt/bench/overlap_bench.h>
#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

constexpr int kMatchTries = 6;
constexpr int kTimedRuns = 5;
// Numbers for SplitMethod::run_phase(): 0 to 2 are the step's own.
constexpr std::int32_t kMatchPhase = 3;
constexpr std::int32_t kWayPhase = kMatchPhase + 6;
static_assert(kMatchTries <= 6 && kWayPhase + 5 <= SplitMethod::kMostPhases);

std::int64_t ns_since(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

/// The step and the product of one rank.
class Parts {
 public:
  Parts(const MethodContext& context, const OverlapPlan& plan)
      : context_(context), plan_(plan), step_(plan.make_step(context)) {
    const Point& point = context.workload.point();
    shape_ = {.m = plan.rows > 0 ? plan.rows : point.tokens,
              .n = plan.columns,
              .k = plan.depth > 0 ? plan.depth : point.hidden,
              .dtype = plan.dtype};
    if (shape_.n == 0) match();
    if (gemm_ == nullptr) gemm_ = plan_.make_gemm(shape_, step_->stream());
  }

  [[nodiscard]] SplitMethod& step() noexcept { return *step_; }
  [[nodiscard]] Gemm& gemm() noexcept { return *gemm_; }
  [[nodiscard]] const GemmShape& shape() const noexcept { return shape_; }

 private:
  /// This rank's time for `work`, which all ranks begin together.
  template <class Work>
  std::int64_t part_ns(Collectives& ranks, const Work& work) {
    step_->ready();
    ranks.barrier(context_.settings.deadline);
    const auto start = Clock::now();
    work();
    const std::int64_t wall_ns = ns_since(start);
    const Method::Span span = step_->own_span();
    return span.end_ns > 0 ? span.end_ns - span.begin_ns : wall_ns;
  }

  /// The slowest rank's result of `run`, the median of some runs; the same on every rank.
  template <class Run>
  double slowest_ns(Collectives& ranks, const Run& run) {
    std::vector<std::int64_t> all(static_cast<std::size_t>(context_.workload.point().ranks));
    std::vector<std::int64_t> slowest;
    for (int i = -1; i < kTimedRuns; ++i) {
      const std::int64_t mine = run();
      ranks.allgather(&mine, sizeof mine, all.data(), context_.settings.deadline);
      if (i >= 0) slowest.push_back(*std::max_element(all.begin(), all.end()));
    }
    std::sort(slowest.begin(), slowest.end());
    return static_cast<double>(slowest[slowest.size() / 2]);
  }

  /// Sets shape_.n and gemm_ so that one product takes as long as half of dispatch and combine.
  void match() {
    const std::unique_ptr<Collectives> ranks = context_.transport.make_collectives(
        static_cast<std::int64_t>(sizeof(std::int64_t)), Clock::now() + context_.settings.deadline);
    const double step_ns = slowest_ns(*ranks, [&] {
      const std::int64_t dispatch_ns = part_ns(*ranks, [this] { step_->dispatch(); });
      step_->touch();
      return dispatch_ns + part_ns(*ranks, [this] { step_->combine(); });
    });
    const std::int64_t most =
        std::max<std::int64_t>(16, kMostMatchedBytes / (shape_.k * dtype_bytes(shape_.dtype)) / 16 * 16);
    shape_.n = std::min<std::int64_t>(64, most);
    for (int tries = 0; tries < kMatchTries; ++tries) {
      gemm_.reset();
      gemm_ = plan_.make_gemm(shape_, step_->stream());
      const double took_ns = slowest_ns(*ranks, [&] {
        return part_ns(*ranks, [&] { step_->run_phase(kMatchPhase + tries, [this] { gemm_->run(); }); });
      });
      const std::int64_t next = next_columns(shape_.n, took_ns, step_ns / 2, most);
      // Closer than this the machine's own unrest decides.
      if (std::abs(next - shape_.n) * 10 <= shape_.n || tries + 1 == kMatchTries) break;
      shape_.n = next;
    }
  }

  const MethodContext context_;
  OverlapPlan plan_;
  std::unique_ptr<SplitMethod> step_;
  GemmShape shape_;
  std::unique_ptr<Gemm> gemm_;
};

/// One object for the ways of one rank at one point: SharedMemory is made once for each.
class PartsOfRank {
 public:
  std::shared_ptr<Parts> find(const MethodContext& context, const OverlapPlan& plan) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (std::shared_ptr<Parts> parts = parts_[&context.memory].lock()) return parts;
    }
    // Collective, so not under the lock: ranks may be threads.
    auto parts = std::make_shared<Parts>(context, plan);
    const std::lock_guard<std::mutex> lock(mutex_);
    parts_[&context.memory] = parts;
    return parts;
  }

 private:
  std::mutex mutex_;
  std::map<const SharedMemory*, std::weak_ptr<Parts>> parts_;
};

enum class Way : std::uint8_t { communication, gemm, serial, overlapped };

class OverlapMethod final : public Method {
 public:
  OverlapMethod(std::shared_ptr<Parts> parts, Way way)
      : parts_(std::move(parts)), step_(parts_->step()), gemm_(parts_->gemm()), way_(way) {}

  void dispatch() override {
    half(
        0, [this] { step_.dispatch_send(); }, [this] { step_.dispatch_recv(); });
  }
  void touch() override {
    if (way_ != Way::gemm) step_.touch();
  }
  void combine() override {
    half(
        1, [this] { step_.combine_send(); }, [this] { step_.combine_recv(); });
  }

  [[nodiscard]] ArrivedRows arrived() const override { return step_.arrived(); }
  [[nodiscard]] const std::byte* combined() const override {
    return way_ == Way::gemm ? nullptr : step_.combined();
  }
  [[nodiscard]] std::string check_own() const override { return gemm_.check(); }
  void poison() override {
    if (way_ != Way::gemm) step_.poison();
    if (way_ != Way::communication) gemm_.poison();
  }
  [[nodiscard]] std::span<std::byte> own_tokens() override {
    return way_ == Way::gemm ? std::span<std::byte>() : step_.own_tokens();
  }
  [[nodiscard]] Span own_span() const noexcept override { return step_.own_span(); }
  void ready() override { step_.ready(); }
  void begin_block() override { step_.begin_block(); }
  void end_block() override {
    step_.end_block();
    if (way_ != Way::communication && wrong_.empty()) wrong_ = gemm_.check();
  }
  [[nodiscard]] Failure failure() const override {
    return wrong_.empty() ? step_.failure() : Failure{.text = wrong_, .by_peer = false};
  }
  [[nodiscard]] Work work() const override {
    if (way_ == Way::communication) return {};
    return {.text = gemm_name(parts_->shape()), .flops = 2 * parts_->shape().flops()};
  }

 private:
  template <class Send, class Recv>
  void half(std::int32_t number, const Send& send, const Recv& recv) {
    // The product alone is the same work in both halves, and dispatch or combine alone that of the step itself.
    const auto way = static_cast<std::int32_t>(way_);
    const std::int32_t phase = way_ == Way::communication ? number
                               : way_ == Way::gemm        ? kWayPhase
                                                          : kWayPhase + 2 * way + number - 3;
    step_.run_phase(phase, [&] {
      if (way_ != Way::gemm) send();
      if (way_ == Way::gemm || way_ == Way::overlapped) gemm_.run();
      if (way_ != Way::gemm) recv();
      if (way_ == Way::serial) gemm_.run();
    });
  }

  std::shared_ptr<Parts> parts_;
  SplitMethod& step_;
  Gemm& gemm_;
  Way way_;
  std::string wrong_;
};

}  // namespace

std::int64_t next_columns(std::int64_t columns, double took_ns, double wanted_ns, std::int64_t most) {
  const double scaled = static_cast<double>(columns) * std::min(wanted_ns / std::max(took_ns, 1.0), 16.0);
  const auto rounded = std::int64_t{std::lround(std::max(scaled, 0.0) / 16)} * 16;
  return std::clamp<std::int64_t>(rounded, 16, std::max<std::int64_t>(most, 16));
}

std::vector<MethodSpec> overlap_methods(const OverlapPlan& plan) {
  static constexpr const char* kSummaries[] = {
      "dispatch, then combine, with nothing else", "the matrix product alone, once in the place of each half",
      "send, receive, then the product", "send, the product, then receive"};
  const auto parts = std::make_shared<PartsOfRank>();
  std::vector<MethodSpec> specs;
  for (std::size_t i = 0; i < kOverlapWays.size(); ++i) {
    const auto way = static_cast<Way>(i);
    MethodSpec spec{.name = kOverlapWays[i], .summary = kSummaries[i]};
    if (way == Way::gemm) spec.kind = MethodKind::floor;
    spec.touch_counts = false;
    // The first one takes the memory that all of them share.
    if (way == Way::communication)
      spec.own_bytes = [plan](const Workload& workload, const MethodSettings& settings) {
        const Point& point = workload.point();
        GemmShape shape{.m = plan.rows > 0 ? plan.rows : point.tokens,
                        .n = plan.columns,
                        .k = plan.depth > 0 ? plan.depth : point.hidden,
                        .dtype = plan.dtype};
        if (shape.n == 0) shape.n = kMostMatchedBytes / (shape.k * dtype_bytes(shape.dtype)) + 16;
        // B lies there twice while its layout is changed.
        return plan.step_bytes(workload, settings) + shape.bytes() +
               shape.k * shape.n * dtype_bytes(shape.dtype);
      };
    spec.make = [parts, plan, way](const MethodContext& context) -> std::unique_ptr<Method> {
      return std::make_unique<OverlapMethod>(parts->find(context, plan), way);
    };
    specs.push_back(std::move(spec));
  }
  return specs;
}

}  // namespace shunt::bench

#include <shunt/bench/routing_bench.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <numeric>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/core/random.h>

#include "result_files.h"
#include "routing_moves.h"

namespace shunt::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kFewestIterations = 3;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

/// One implementation while it is timed.
struct Contestant {
  RoutingRow row;
  std::function<RoutingMoves::Took()> run;  ///< Fills `combine_ms` only where there are halves
  std::vector<double> ms{}, pack_ms{}, combine_ms{};
};

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// All in turn, iteration by iteration.
void time_all(const RoutingPoint& point, std::vector<Contestant>& all) {
  const auto begin = Clock::now();
  auto timed_from = begin;
  for (std::int64_t i = -point.warmup; i < point.iterations; ++i) {
    if (i == 0) timed_from = Clock::now();
    for (Contestant& one : all) {
      const RoutingMoves::Took took = one.run();
      if (i < 0) continue;
      one.ms.push_back(took.pack_ms + took.combine_ms);
      one.pack_ms.push_back(took.pack_ms);
      one.combine_ms.push_back(took.combine_ms);
    }
    // A warm-up that takes long has warmed up.
    const std::chrono::duration<double> spent = Clock::now() - (i < 0 ? begin : timed_from);
    if (spent.count() <= point.max_seconds) continue;
    if (i < -1) i = -1;
    if (i + 1 >= kFewestIterations) break;
  }
  for (Contestant& one : all) one.row.ms = summarize(one.ms);
}

/// Logits [T, E], normal.
std::vector<float> make_logits(const RoutingPoint& point) {
  std::vector<float> logits(at(point.tokens * point.num_experts));
  for (std::int64_t t = 0; t < point.tokens; ++t) {
    Random random(point.seed, static_cast<std::uint64_t>(t) + (std::uint64_t{1} << 40));
    for (std::int64_t e = 0; e < point.num_experts; ++e)
      logits[at(t * point.num_experts + e)] = static_cast<float>(point.logit_deviation * random.normal());
  }
  return logits;
}

/// Top-k and softmax over the chosen of logits in the point's dtype.
class TopKWork {
 public:
  explicit TopKWork(const RoutingPoint& point)
      : point_(point),
        logits_(point.tokens * point.num_experts * dtype_bytes(point.dtype)),
        ids_(at(point.tokens * point.top_k)),
        weights_(ids_.size()) {
    const std::vector<float> values = make_logits(point);
    for (std::size_t i = 0; i < values.size(); ++i)
      store_element(point.dtype, logits_.data(), static_cast<std::int64_t>(i), values[i]);
  }

  RoutingMoves::Took run(const PackKernels& kernels) {
    const auto start = Clock::now();
    const std::int64_t k = point_.top_k;
    kernels.top_k({.logits = logits_.data(),
                   .dtype = point_.dtype,
                   .num_tokens = point_.tokens,
                   .num_experts = point_.num_experts,
                   .top_k = point_.top_k,
                   .ids = ids_.data(),
                   .values = weights_.data()});
    for (std::int64_t t = 0; t < point_.tokens; ++t) {
      float* of = weights_.data() + t * k;
      const float largest = of[0];
      float sum = 0;
      for (std::int64_t i = 0; i < k; ++i) sum += of[i] = std::exp(of[i] - largest);
      for (std::int64_t i = 0; i < k; ++i) of[i] /= sum;
    }
    return {std::chrono::duration<double, std::milli>(Clock::now() - start).count(), 0};
  }

  void spoil() {
    std::fill(ids_.begin(), ids_.end(), -2);
    std::fill(weights_.begin(), weights_.end(), std::nanf(""));
  }

  /// By a stable sort of every token, in double.
  [[nodiscard]] std::string check() const {
    std::vector<std::int32_t> order(at(point_.num_experts));
    std::vector<double> z(order.size());
    for (std::int64_t t = 0; t < point_.tokens; ++t) {
      for (std::int64_t e = 0; e < point_.num_experts; ++e)
        z[at(e)] =
            static_cast<double>(load_element(point_.dtype, logits_.data(), t * point_.num_experts + e));
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + point_.top_k, order.end(),
                        [&z](std::int32_t a, std::int32_t b) {
                          return z[at(a)] != z[at(b)] ? z[at(a)] > z[at(b)] : a < b;
                        });
      double sum = 0;
      for (std::int64_t k = 0; k < point_.top_k; ++k) sum += std::exp(z[at(order[at(k)])] - z[at(order[0])]);
      for (std::int64_t k = 0; k < point_.top_k; ++k) {
        const std::int32_t expert = order[at(k)];
        const auto i = at(t * point_.top_k + k);
        if (ids_[i] != expert)
          return fmt::format("choice {} of token {} is expert {}, not {}", k, t, ids_[i], expert);
        const double weight = std::exp(z[at(expert)] - z[at(order[0])]) / sum;
        if (!(std::abs(static_cast<double>(weights_[i]) - weight) <= 1e-5 * weight + 1e-30))
          return fmt::format("weight {} of token {} is {}, not {}", k, t, weights_[i], weight);
      }
    }
    return {};
  }

  [[nodiscard]] GateOutput<float> output() const {
    return {point_.tokens, point_.num_experts, point_.top_k, ids_, weights_};
  }

 private:
  const RoutingPoint& point_;
  Lines logits_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
};

template <class Work>
std::vector<Contestant> contestants(const RoutingPoint& point, Work& work) {
  std::vector<Contestant> all;
  for (const std::string& impl : point.impls) {
    const PackKernels& kernels = impl_kernels(impl);
    Contestant one;
    one.row.impl = impl;
    one.row.isa = isa_name(kernels.isa);
    one.run = [&work, &kernels] { return work.run(kernels); };
    all.push_back(std::move(one));
  }
  return all;
}

/// Each once more, into memory that holds something else.
template <class Work>
void check_all(std::vector<Contestant>& all, Work& work, RoutingResult& result) {
  for (Contestant& one : all) {
    work.spoil();
    (void)one.run();
    one.row.reason = work.check();
    one.row.correct = one.row.reason.empty();
    result.failed = result.failed || !one.row.correct;
    result.rows.push_back(one.row);
  }
}

void check_memory(const RoutingPoint& point) {
  const std::int64_t logits = point.tokens * point.num_experts * 8;
  const std::int64_t needed =
      point.work == RoutingWork::topk ? logits : logits + RoutingMoves::memory_bytes(point);
  const std::int64_t free = read_host_info().memory_available_bytes;
  if (free > 0 && needed > free / 10 * 9)
    throw Error(Errc::out_of_memory,
                fmt::format("{} tokens of {} elements, top-{}, need {} bytes, but {} are free; fewer "
                            "--num-tokens or a smaller --hidden-dim need less",
                            point.tokens, point.hidden, point.top_k, needed, free));
}

RoutingResult measure_topk(const RoutingPoint& point) {
  RoutingResult result;
  result.point = point;
  TopKWork work(point);
  std::vector<Contestant> all = contestants(point, work);
  time_all(point, all);
  check_all(all, work, result);
  const GateOutput<float> chosen = work.output();
  result.load = describe_load(expert_counts(chosen));
  result.gate = describe_gate(chosen);
  result.kept_load = result.load;
  result.kept = result.load.total;
  result.kept_tokens = point.tokens;
  return result;
}

GateOutput<float> make_choice(const RoutingPoint& point) {
  const std::vector<float> logits = make_logits(point);
  GateConfig gate = make_gate(point.gate, point.num_experts, point.top_k);
  gate.seed = point.seed;
  GateInput<float> input{.logits = {logits.data(), point.tokens, point.num_experts}};
  std::vector<std::int64_t> tokens;
  if (gate.selection == Selection::hash) {
    tokens.resize(at(point.tokens));
    std::iota(tokens.begin(), tokens.end(), 0);
    input.token_ids = tokens;
  }
  return gate_forward(gate, input);
}

RoutingResult measure_moves(const RoutingPoint& asked) {
  RoutingResult result;
  result.point = asked;
  RoutingPoint& point = result.point;
  const GateOutput<float> chosen = make_choice(point);
  // Expert choice makes rows as wide as the most chosen token needs.
  point.top_k = chosen.top_k;
  check_memory(point);
  CapacityOptions options{.mode = CapacityMode::dropless};
  if (point.work == RoutingWork::capacity) {
    result.load = describe_load(expert_counts(chosen));
    result.capacity =
        expert_capacity({.formula = point.formula, .factor = point.capacity_factor}, point.tokens,
                        asked.top_k, point.num_experts, std::max<std::int64_t>(result.load.max, 1));
    options = {.mode = CapacityMode::drop, .capacity = result.capacity};
  }
  const CapacityPlan plan = plan_capacity<float>(chosen, options);
  result.load = describe_load(plan.counts);
  result.kept_load = describe_load(plan.kept);
  result.gate = describe_gate(chosen);
  result.kept = plan.num_selections - plan.num_dropped;
  for (std::int64_t t = 0; t < point.tokens; ++t) {
    const auto* first = plan.places.data() + t * point.top_k;
    if (std::any_of(first, first + point.top_k, [](std::int32_t place) { return place >= 0; }))
      ++result.kept_tokens;
  }
  result.avg_drop_rate = plan.drop_rate();
  result.token_drop_rate = plan.token_drop_rate();
  result.used_capacity = plan.used_capacity();

  RoutingMoves work(point, chosen, plan, result.capacity);
  std::vector<Contestant> all = contestants(point, work);
  Contestant copy;
  copy.row.impl = "copy";
  copy.row.isa = isa_name(pack_kernels().isa);
  copy.run = [&work] { return RoutingMoves::Took{work.copy(), 0}; };
  all.push_back(std::move(copy));
  time_all(point, all);
  for (Contestant& one : all) {
    if (one.row.impl == "copy") continue;
    one.row.pack_ms = mean(one.pack_ms);
    one.row.combine_ms = mean(one.combine_ms);
  }
  const RoutingRow floor = all.back().row;
  all.pop_back();
  check_all(all, work, result);
  result.rows.push_back(floor);
  return result;
}

}  // namespace

std::int64_t RoutingResult::bytes_per_token_strict() const {
  if (point.work == RoutingWork::topk) return 0;
  return (2 + 2 * std::int64_t{point.top_k}) * point.hidden * dtype_bytes(point.dtype);
}

std::int64_t RoutingResult::strict_bytes() const {
  return point.tokens * bytes_per_token_strict();
}

std::int64_t RoutingResult::kept_bytes() const {
  if (point.work == RoutingWork::topk) return 0;
  return (kept_tokens + 2 * kept + point.tokens) * point.hidden * dtype_bytes(point.dtype);
}

const PackKernels& impl_kernels(const std::string& impl) {
  if (impl == "scalar") return pack_kernels(Isa::scalar);
  if (impl == "simd") return pack_kernels();
  if (impl == "cuda" || impl == "torch")
    throw Error(Errc::unavailable,
                fmt::format("--impl {}: this benchmark has scalar and simd so far; shunt bench pack measures "
                            "GPUs, benchmarks/peers/torch_pack.py PyTorch",
                            impl));
  refuse("--impl: \"{}\" is not known; allowed: scalar, simd", impl);
}

void check_point(const RoutingPoint& point) {
  if (point.tokens < 1) refuse("--num-tokens is {}; allowed: 1 or more", point.tokens);
  if (point.hidden < 1) refuse("--hidden-dim is {}; allowed: 1 or more", point.hidden);
  if (point.dtype != DType::f32 && point.dtype != DType::f16 && point.dtype != DType::bf16)
    refuse("--dtype is {}; allowed: float16, bfloat16, float32", dtype_name(point.dtype));
  if (point.iterations < 1 || point.warmup < 0)
    refuse("--iters is {}, --warmup {}; allowed: at least 1 and 0", point.iterations, point.warmup);
  if (point.impls.empty()) refuse("--impl names nothing; allowed: scalar, simd");
  for (const std::string& impl : point.impls) (void)impl_kernels(impl);
  (void)make_gate(point.gate, point.num_experts, point.top_k);
  if (point.work == RoutingWork::topk && point.gate != "softk")
    refuse("--gate {}: the top-k benchmark is of softk", point.gate);
  if (point.work == RoutingWork::capacity)
    (void)expert_capacity({.formula = point.formula, .factor = point.capacity_factor}, point.tokens,
                          point.top_k, point.num_experts, 1);
  // Rows and choices are counted in 32 bits.
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  if (point.tokens > kMost / point.top_k)
    refuse("--num-tokens {} times --top-k {} is more than {} choices", point.tokens, point.top_k, kMost);
}

RoutingResult measure_point(const RoutingPoint& point) {
  check_point(point);
  check_memory(point);
  return point.work == RoutingWork::topk ? measure_topk(point) : measure_moves(point);
}

RoutingBenchReport run_routing_bench(const RoutingBenchOptions& options,
                                     const std::vector<std::string>& command, const BenchOutput& output) {
  std::vector<RoutingPoint> points{options.point};
  if (options.point.work == RoutingWork::capacity) {
    points.clear();
    for (const double factor : options.capacity_factors) {
      points.push_back(options.point);
      points.back().capacity_factor = factor;
    }
  }
  for (const RoutingPoint& point : points) check_point(point);
  NewFile file{.path = options.jsonl};
  if (!file.path.empty()) file.make();
  RoutingBenchReport report;
  try {
    if (file.descriptor >= 0) file.append(context_record(command).to_json() + "\n");
    for (const RoutingPoint& point : points) {
      if (output.progress)
        output.progress(static_cast<double>(report.results.size()) / static_cast<double>(points.size()),
                        fmt::format("{} of {} tokens", routing_work_name(point.work), point.tokens));
      report.results.push_back(measure_point(point));
      report.failed = report.failed || report.results.back().failed;
      std::string lines;
      for (const Record& record : routing_records(report.results.back())) lines += record.to_json() + "\n";
      if (file.descriptor >= 0) file.append(lines);
    }
  } catch (...) {
    if (report.results.empty()) file.remove();
    throw;
  }
  if (file.descriptor >= 0) close(file.descriptor);
  if (output.progress) output.progress(1, "done");
  if (output.text) output.text(format_routing_table(report.results));
  return report;
}

}  // namespace shunt::bench

#include <shunt/bench/routing_bench.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>

#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/routing/gate_network.h>

#include "result_files.h"
#include "routing_choice.h"
#include "routing_moves.h"

namespace shunt::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::int64_t kFewestIterations = 3;
constexpr std::int32_t kMostThreads = 1024;

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

/// One implementation while it is timed.
struct Contestant {
  RoutingRow row;
  RoutingRunner runner;
  std::vector<double> ms{}, pack_ms{}, combine_ms{};
};

/// The threads of libtorch look for work for some milliseconds before they sleep, on cores that others need.
constexpr auto kSettling = std::chrono::milliseconds(20);

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
      const RoutingTook took = one.runner.run();
      if (one.row.impl == "torch" && point.threads > 1) std::this_thread::sleep_for(kSettling);
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

template <class Work>
std::vector<Contestant> contestants(const RoutingPoint& point, Work& work) {
  std::vector<Contestant> all;
  for (const std::string& impl : point.impls) {
    Contestant one;
    one.runner = work.runner(impl);
    one.row.impl = impl;
    one.row.isa = one.runner.isa;
    one.row.written = one.runner.written;
    all.push_back(std::move(one));
  }
  return all;
}

/// Each once more, into memory that holds something else.
template <class Work>
void check_all(std::vector<Contestant>& all, Work& work, RoutingResult& result) {
  for (Contestant& one : all) {
    work.spoil();
    (void)one.runner.run();
    one.row.reason = one.runner.check();
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

RoutingResult measure_topk(const RoutingPoint& point, Team& team) {
  RoutingResult result;
  result.point = point;
  result.requested_k = point.top_k;
  TopKWork work(point, team);
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

RoutingResult measure_moves(const RoutingPoint& asked, Team& team) {
  RoutingResult result;
  result.point = asked;
  result.requested_k = asked.top_k;
  RoutingPoint& point = result.point;
  const GateOutput<float> chosen = make_choice(point, team, result.router_ms);
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

  RoutingMoves work(point, chosen, plan, result.capacity, team);
  std::vector<Contestant> all = contestants(point, work);
  Contestant copy;
  copy.row.impl = "copy";
  copy.row.isa = isa_name(pack_kernels().isa);
  copy.runner.run = [&work, &result] { return RoutingTook{work.copy(result.requested_k), 0}; };
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
  const std::int64_t half = (1 + std::int64_t{requested_k}) * point.hidden * dtype_bytes(point.dtype);
  return point.work == RoutingWork::pack_only || point.work == RoutingWork::combine_only ? half : 2 * half;
}

std::int64_t RoutingResult::strict_bytes() const {
  return point.tokens * bytes_per_token_strict();
}

std::int64_t RoutingResult::kept_bytes() const {
  if (point.work == RoutingWork::topk) return 0;
  std::int64_t moved = 0;
  if (point.work != RoutingWork::combine_only) moved += kept_tokens + kept;
  if (point.work != RoutingWork::pack_only) moved += kept + point.tokens;
  return moved * point.hidden * dtype_bytes(point.dtype);
}

double RoutingResult::speedup_over(const std::string& impl, const RoutingRow& row) const {
  for (const RoutingRow& other : rows)
    if (other.impl == impl && row.ms.mean > 0) return other.ms.mean / row.ms.mean;
  return 0;
}

const std::vector<std::string>& impl_names() {
  static const std::vector<std::string> names{"scalar", "simd", "torch"};
  return names;
}

void check_point(const RoutingPoint& point) {
  if (point.tokens < 1) refuse("--num-tokens is {}; allowed: 1 or more", point.tokens);
  if (point.hidden < 1) refuse("--hidden-dim is {}; allowed: 1 or more", point.hidden);
  if (point.dtype != DType::f32 && point.dtype != DType::f16 && point.dtype != DType::bf16)
    refuse("--dtype is {}; allowed: float16, bfloat16, float32", dtype_name(point.dtype));
  if (point.iterations < 1 || point.warmup < 0)
    refuse("--iters is {}, --warmup {}; allowed: at least 1 and 0", point.iterations, point.warmup);
  const std::vector<std::string>& known = impl_names();
  if (point.impls.empty()) refuse("--impl names nothing; allowed: {}", fmt::join(known, ", "));
  for (const std::string& impl : point.impls) {
    if (std::count(known.begin(), known.end(), impl) == 0)
      refuse("--impl: \"{}\" is not known; allowed: {}", impl, fmt::join(known, ", "));
    if (impl == "torch") (void)torch_plugin();
  }
  if (point.threads < 0 || point.threads > kMostThreads)
    refuse("--threads is {}; allowed: 1 to {}", point.threads, kMostThreads);
  if (!point.router.empty()) (void)parse_gate_arch(point.router);
  if (!(point.temperature > 0 && std::isfinite(point.temperature)))
    refuse("--temperature is {}; allowed: numbers above 0", point.temperature);
  if (!(point.jitter >= 0 && point.jitter < 1))
    refuse("--jitter is {}; allowed: 0 to less than 1", point.jitter);
  if (point.jitter > 0 && point.router.empty())
    refuse("--jitter is of what the router reads; give --router-arch too");
  if (!(point.noise >= 0 && std::isfinite(point.noise)))
    refuse("--noise is {}; allowed: 0 or more", point.noise);
  const GateConfig gate = make_gate(point.gate, point.num_experts, point.top_k);
  if (point.balance_steps < 0 || (point.balance_steps > 0 && gate.selection != Selection::top_k))
    refuse(
        "--balance-steps is {} with --gate {}; allowed: 0 or more, and above 0 for gates in which tokens "
        "choose by "
        "score",
        point.balance_steps, point.gate);
  if (point.renormalise != Renormalise::no && gate.weights == WeightRule::one)
    refuse("--renorm-after-drop: --gate {} adds outputs up and has no weights", point.gate);
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

RoutingResult measure_point(const RoutingPoint& asked) {
  check_point(asked);
  check_memory(asked);
  RoutingPoint point = asked;
  if (point.threads == 0) point.threads = available_cores();
  Team team(point.threads);
  return point.work == RoutingWork::topk ? measure_topk(point, team) : measure_moves(point, team);
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

#include <shunt/routing/trace_stats.h>

#include <algorithm>

#include <shunt/routing/capacity.h>

#include "scores.h"

namespace shunt {
namespace {

using detail::at;

/// One part of a trace while it is added up.
class Part {
 public:
  Part(const Trace& trace, std::int32_t step, std::int32_t group, std::span<const double> factors)
      : factors_(factors), dropped_(factors.size()), without_(factors.size()) {
    load_.step = step;
    load_.group = group;
    load_.counts.assign(at(trace.num_experts), 0);
    all_.top_k = trace.top_k;
    all_.num_experts = trace.num_experts;
  }

  void add(const Routing& routing) {
    all_.num_tokens += routing.num_tokens;
    all_.ids.insert(all_.ids.end(), routing.ids.begin(), routing.ids.end());
    all_.weights.insert(all_.weights.end(), routing.weights.begin(), routing.weights.end());
    // Rows of expert choice are wider than what a token takes on average: the choices are counted.
    const std::int64_t selections =
        std::count_if(routing.ids.begin(), routing.ids.end(), [](std::int32_t id) { return id >= 0; });
    if (selections == 0) return;
    const GateOutput<float> gate{routing.num_tokens, routing.num_experts, routing.top_k, routing.ids,
                                 routing.weights};
    for (std::size_t i = 0; i < factors_.size(); ++i) {
      const std::int64_t capacity =
          expert_capacity({.factor = factors_[i]}, selections, 1, routing.num_experts);
      const CapacityPlan plan = plan_capacity<float>(gate, {.capacity = capacity});
      dropped_[i] += plan.num_dropped;
      without_[i] += plan.tokens_without;
    }
  }

  TraceLoad finish() {
    load_.tokens = all_.num_tokens;
    load_.counts = expert_counts(all_);
    load_.load = describe_load(load_.counts);
    load_.gate = describe_gate(all_);
    load_.selections = load_.load.total;
    load_.skipped = static_cast<std::int64_t>(all_.ids.size()) - load_.selections;
    const auto share = [](std::int64_t part, std::int64_t whole) {
      return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
    };
    for (std::size_t i = 0; i < factors_.size(); ++i) {
      load_.drop_rates.push_back(share(dropped_[i], load_.selections));
      load_.token_drop_rates.push_back(share(without_[i], load_.tokens));
    }
    return std::move(load_);
  }

 private:
  std::span<const double> factors_;
  std::vector<std::int64_t> dropped_, without_;
  Routing all_;
  TraceLoad load_;
};

std::string part_name(const TraceLoad& load) {
  if (load.step >= 0) return fmt::format("step {}", load.step);
  return load.group >= 0 ? fmt::format("group {}", load.group) : "all";
}

}  // namespace

std::vector<TraceLoad> describe_trace(const Trace& trace, TraceDetail detail,
                                      std::span<const double> capacity_factors) {
  for (const double factor : capacity_factors)
    (void)expert_capacity({.factor = factor}, 1, 1, 1);  // refuses what is no factor, with or without tokens
  std::vector<Part> parts;
  parts.emplace_back(trace, -1, -1, capacity_factors);
  const auto groups = trace.steps.empty() ? 0 : static_cast<std::int32_t>(trace.steps.front().size());
  const auto steps = static_cast<std::int32_t>(trace.steps.size());
  for (std::int32_t s = 0; detail == TraceDetail::steps && s < steps; ++s)
    parts.emplace_back(trace, s, -1, capacity_factors);
  for (std::int32_t g = 0; detail == TraceDetail::groups && g < groups; ++g)
    parts.emplace_back(trace, -1, g, capacity_factors);
  for (std::size_t s = 0; s < trace.steps.size(); ++s) {
    for (std::size_t g = 0; g < trace.steps[s].size(); ++g) {
      const Routing& routing = trace.steps[s][g];
      parts[0].add(routing);
      if (detail == TraceDetail::steps) parts[1 + s].add(routing);
      if (detail == TraceDetail::groups) parts[1 + g].add(routing);
    }
  }
  std::vector<TraceLoad> loads;
  for (Part& part : parts) loads.push_back(part.finish());
  return loads;
}

std::string format_trace_loads(const Trace& trace, const std::vector<TraceLoad>& loads,
                               std::span<const double> capacity_factors) {
  std::string text =
      fmt::format("# {} experts, top-{}, {} steps of {} groups; {}\n", trace.num_experts, trace.top_k,
                  trace.steps.size(), trace.steps.empty() ? 0 : trace.steps.front().size(), trace.source);
  text += fmt::format("{:<10} {:>10} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6} {:>8} {:>8}", "part",
                      "tokens", "selections", "skipped", "load_cv", "max/mean", "gini", "entropy", "eff.exp",
                      "idle", "gate_ent", "top_prob");
  for (const double factor : capacity_factors) text += fmt::format(" {:>12}", fmt::format("drop@{}", factor));
  text += "\n";
  for (const TraceLoad& part : loads) {
    text += fmt::format(
        "{:<10} {:>10} {:>11} {:>8} {:>8.4f} {:>8.4f} {:>8.4f} {:>8.4f} {:>8.2f} {:>6} {:>8.4f} {:>8.4f}",
        part_name(part), part.tokens, part.selections, part.skipped, part.load.cv, part.load.max_over_mean,
        part.load.gini, part.load.entropy, part.load.effective_experts, part.load.idle, part.gate.entropy,
        part.gate.mean_topk_prob);
    for (const double rate : part.drop_rates) text += fmt::format(" {:>12.4f}", rate);
    text += "\n";
  }
  std::vector<std::size_t> order(loads.front().counts.size());
  for (std::size_t e = 0; e < order.size(); ++e) order[e] = e;
  std::stable_sort(order.begin(), order.end(), [&loads](std::size_t a, std::size_t b) {
    return loads.front().counts[a] > loads.front().counts[b];
  });
  order.resize(std::min<std::size_t>(order.size(), 8));
  text += "# busiest experts:";
  for (const std::size_t e : order) text += fmt::format(" {} ({})", e, loads.front().counts[e]);
  return text + "\n";
}

std::vector<Record> trace_load_records(const Trace& trace, const std::vector<TraceLoad>& loads,
                                       std::span<const double> capacity_factors) {
  std::vector<Record> records;
  for (const TraceLoad& part : loads) {
    Record record("trace_load");
    record.set("step", std::int64_t{part.step})
        .set("group", std::int64_t{part.group})
        .set("experts", std::int64_t{trace.num_experts})
        .set("topk", std::int64_t{trace.top_k})
        .set("tokens", part.tokens)
        .set("selections", part.selections)
        .set("skipped", part.skipped)
        .set("load_cv", part.load.cv)
        .set("max_over_mean", part.load.max_over_mean)
        .set("max_vio", part.load.max_vio)
        .set("gini", part.load.gini)
        .set("load_entropy", part.load.entropy)
        .set("effective_experts", part.load.effective_experts)
        .set("idle", part.load.idle)
        .set("gate_entropy", part.gate.entropy)
        .set("mean_topk_prob", part.gate.mean_topk_prob)
        .set("capacity_factors", std::vector<double>(capacity_factors.begin(), capacity_factors.end()))
        .set("avg_drop_rate", part.drop_rates)
        .set("token_drop_rate", part.token_drop_rates)
        .set("expert_counts", part.counts);
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace shunt

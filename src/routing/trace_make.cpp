#include <algorithm>
#include <cmath>
#include <optional>

#include <shunt/core/random.h>
#include <shunt/routing/gate_network.h>
#include <shunt/routing/trace_stats.h>

#include "scores.h"
#include "streams.h"

namespace shunt {
namespace {

using detail::at;
using detail::refuse;

void check_steps(std::int32_t steps) {
  if (steps < 1) refuse("trace: {} steps; at least 1 is needed", steps);
}

/// Tokens [first, end) of a routing.
Routing cut(const Routing& all, std::int64_t first, std::int64_t end) {
  const std::int64_t k = all.top_k;
  Routing part{end - first, all.top_k, all.num_experts, {}, {}};
  part.ids.assign(all.ids.begin() + first * k, all.ids.begin() + end * k);
  part.weights.assign(all.weights.begin() + first * k, all.weights.begin() + end * k);
  return part;
}

/// Makes rows `width` wide with -1.
void widen(Routing& routing, std::int32_t width) {
  Routing wide{routing.num_tokens, width, routing.num_experts, {}, {}};
  wide.ids.assign(at(routing.num_tokens * width), -1);
  wide.weights.assign(wide.ids.size(), 0.0F);
  for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
    const std::int64_t from = t * routing.top_k;
    std::copy_n(routing.ids.begin() + from, routing.top_k, wide.ids.begin() + t * width);
    std::copy_n(routing.weights.begin() + from, routing.top_k, wide.weights.begin() + t * width);
  }
  routing = std::move(wide);
}

}  // namespace

Trace make_trace(const RoutingSpec& spec, const RoutingShape& shape, std::uint64_t seed, std::int32_t steps) {
  check_steps(steps);
  RoutingShape all = shape;
  all.num_tokens = shape.num_tokens * steps;
  const Router router(spec, all, seed);
  Trace trace;
  trace.num_experts = shape.num_experts;
  trace.top_k = shape.top_k;
  trace.source = fmt::format("shunt trace generate: routing {}, seed {}", routing_name(spec), seed);
  trace.steps.resize(at(steps));
  for (std::int32_t group = 0; group < shape.num_groups; ++group) {
    const Routing routing = router.route(group);
    for (std::int64_t step = 0; step < steps; ++step)
      trace.steps[at(step)].push_back(
          cut(routing, routing.num_tokens * step / steps, routing.num_tokens * (step + 1) / steps));
  }
  return trace;
}

Trace make_gate_trace(const GateConfig& gate, const RoutingShape& shape, std::uint64_t seed,
                      std::int32_t steps, const TraceLogits& of) {
  check_steps(steps);
  const double skew = of.skew;
  if (!(std::isfinite(skew) && skew >= 0)) refuse("trace: skew {} is not a finite number >= 0", skew);
  if (of.jitter > 0 && of.network.empty())
    refuse("trace: jitter {} is of what a network reads, and there is none", of.jitter);
  constexpr std::int64_t kMostTokens = std::int64_t{1} << 24;
  if (shape.num_tokens < 0 || shape.num_tokens > kMostTokens)
    refuse("trace: {} tokens per group and step; allowed are 0 to {}", shape.num_tokens, kMostTokens);
  if (shape.num_groups < 1) refuse("trace: {} groups; at least 1 is needed", shape.num_groups);
  constexpr std::int64_t kMostLogits = std::int64_t{1} << 31;
  if (shape.num_tokens * gate.num_experts > kMostLogits)
    refuse("trace: {} tokens of a group and step with {} experts have {} logits; at most {} are allowed",
           shape.num_tokens, gate.num_experts, shape.num_tokens * gate.num_experts, kMostLogits);
  constexpr std::int64_t kMostPlaces = std::int64_t{1} << detail::kTokenBits;
  if (shape.num_tokens * steps > kMostPlaces)
    refuse("trace: {} steps of {} tokens are {} of a group; at most {} are allowed", steps, shape.num_tokens,
           shape.num_tokens * steps, kMostPlaces);
  const std::int64_t experts = gate.num_experts;
  std::vector<double> liked(at(experts));
  Random of_experts(detail::purpose_seed(seed, detail::Purpose::popularity));
  for (double& u : liked) u = skew * of_experts.normal();

  std::optional<GateNetwork<float>> network;
  std::vector<float> tokens;
  if (!of.network.empty()) {
    network.emplace(
        GateNetworkConfig{
            .arch = parse_gate_arch(of.network), .hidden = of.hidden, .num_experts = gate.num_experts},
        seed);
    tokens.resize(at(shape.num_tokens * of.hidden));
  }

  constexpr std::uint64_t kVocabulary = 50000;
  const std::uint64_t logit_seed = detail::purpose_seed(seed, detail::Purpose::logits);
  std::vector<float> logits(at(shape.num_tokens * experts));
  std::vector<std::int64_t> token_ids(at(shape.num_tokens));
  std::vector<float> bias(at(experts));
  Trace trace;
  trace.num_experts = gate.num_experts;
  trace.top_k = gate.top_k;
  trace.source = fmt::format(
      "shunt trace generate: gate {} on {}, skew {}, jitter {}, noise {}, {} updates of the bias, seed {}",
      gate.name,
      of.network.empty() ? "random logits"
                         : fmt::format("logits of a network {} of {} elements", of.network, of.hidden),
      skew, of.jitter, of.noise, of.balance_steps, seed);
  trace.steps.resize(at(steps));
  for (std::int32_t step = 0; step < steps; ++step) {
    for (std::int32_t group = 0; group < shape.num_groups; ++group) {
      for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
        Random random(logit_seed, detail::token_stream(group, step * shape.num_tokens + t));
        for (std::int64_t h = 0; network && h < of.hidden; ++h)
          tokens[at(t * of.hidden + h)] = static_cast<float>(random.normal());
        for (std::int64_t e = 0; !network && e < experts; ++e)
          logits[at(t * experts + e)] = static_cast<float>(random.normal() + liked[at(e)]);
        token_ids[at(t)] = static_cast<std::int64_t>(random.below(kVocabulary));
      }
      // Counted on, so that steps and groups differ.
      const std::int64_t first = (std::int64_t{step} * shape.num_groups + group) * shape.num_tokens;
      const View2<float> z{logits.data(), shape.num_tokens, experts};
      if (network) {
        const View2<float> x{tokens.data(), shape.num_tokens, of.hidden};
        if (of.jitter > 0) apply_jitter(x, of.jitter, seed, first);
        GateNetwork<float>::Trace passed;
        network->forward(x, z, passed);
        for (std::int64_t t = 0; t < shape.num_tokens; ++t)
          for (std::int64_t e = 0; e < experts; ++e) z(t, e) += static_cast<float>(liked[at(e)]);
      }
      if (of.noise != 0) add_logit_noise(z, of.noise, seed, first);
      GateInput<float> input{.logits = {logits.data(), shape.num_tokens, experts}};
      if (gate.selection == Selection::hash) input.token_ids = token_ids;
      if (of.balance_steps > 0) {
        balance_bias<float>(gate, input.logits, of.balance_steps, bias);
        input.bias = bias;
      }
      trace.steps[at(step)].push_back(to_routing(gate_forward(gate, input)));
      trace.top_k = std::max(trace.top_k, trace.steps[at(step)].back().top_k);
    }
  }
  for (auto& groups : trace.steps) {
    for (Routing& routing : groups) {
      if (routing.top_k < trace.top_k) widen(routing, trace.top_k);
      check_routing(routing, "gate " + gate.name);
    }
  }
  return trace;
}

}  // namespace shunt

#include "routing_choice.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include <shunt/core/random.h>
#include <shunt/routing/gate_network.h>

namespace shunt::bench {
namespace {

using Clock = std::chrono::steady_clock;
/// Tokens that the router is given at once.
constexpr std::int64_t kChunk = 64;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

/// Tokens [first, first + count) through the network; seconds that it took.
double route(const RoutingPoint& point, const GateNetwork<float>& network, std::int64_t first,
             std::int64_t count, float* logits) {
  std::vector<float> x(at(count * point.hidden));
  for (std::int64_t t = 0; t < count; ++t) {
    Random random(point.seed, static_cast<std::uint64_t>(first + t) + (std::uint64_t{1} << 41));
    for (std::int64_t h = 0; h < point.hidden; ++h)
      x[at(t * point.hidden + h)] = static_cast<float>(random.normal());
  }
  const auto start = Clock::now();
  const View2<float> tokens{x.data(), count, point.hidden};
  if (point.jitter > 0) apply_jitter(tokens, point.jitter, point.seed, first);
  GateNetwork<float>::Trace trace;
  network.forward({x.data(), count, point.hidden}, {logits, count, point.num_experts}, trace);
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

std::vector<float> make_logits(const RoutingPoint& point, Team& team, double& router_ms) {
  const std::int64_t experts = point.num_experts;
  std::vector<float> logits(at(point.tokens * experts));
  router_ms = 0;
  if (point.router.empty()) {
    team.share(point.tokens, [&](std::int32_t /*part*/, std::int64_t from, std::int64_t to) {
      for (std::int64_t t = from; t < to; ++t) {
        Random random(point.seed, static_cast<std::uint64_t>(t) + (std::uint64_t{1} << 40));
        for (std::int64_t e = 0; e < experts; ++e)
          logits[at(t * experts + e)] = static_cast<float>(point.logit_deviation * random.normal());
      }
    });
  } else {
    const GateNetwork<float> network(
        {.arch = parse_gate_arch(point.router), .hidden = point.hidden, .num_experts = point.num_experts},
        point.seed);
    std::vector<double> seconds(at(team.size()));
    team.share(point.tokens, [&](std::int32_t part, std::int64_t from, std::int64_t to) {
      for (std::int64_t t = from; t < to; t += kChunk)
        seconds[at(part)] += route(point, network, t, std::min(kChunk, to - t), logits.data() + t * experts);
    });
    router_ms = 1e3 * *std::max_element(seconds.begin(), seconds.end());
  }
  if (point.noise > 0)
    add_logit_noise<float>({logits.data(), point.tokens, experts}, point.noise, point.seed);
  return logits;
}

GateOutput<float> make_choice(const RoutingPoint& point, Team& team, double& router_ms) {
  const std::vector<float> logits = make_logits(point, team, router_ms);
  GateConfig gate = make_gate(point.gate, point.num_experts, point.top_k);
  gate.seed = point.seed;
  gate.temperature = point.temperature;
  // Experts take what they have room for.
  if (point.work == RoutingWork::capacity && point.capacity_factor > 0)
    gate.capacity_factor = point.capacity_factor;
  GateInput<float> input{.logits = {logits.data(), point.tokens, point.num_experts}};
  std::vector<std::int64_t> tokens;
  if (gate.selection == Selection::hash) {
    tokens.resize(at(point.tokens));
    std::iota(tokens.begin(), tokens.end(), 0);
    input.token_ids = tokens;
  }
  std::vector<float> bias;
  if (point.balance_steps > 0) {
    bias.resize(at(point.num_experts));
    balance_bias<float>(gate, input.logits, point.balance_steps, bias);
    input.bias = bias;
  }
  return gate_forward(gate, input);
}

}  // namespace shunt::bench

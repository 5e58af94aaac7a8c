#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include <shunt/core/nearest.h>
#include <shunt/routing/gate.h>

#include "scores.h"

namespace shunt {
namespace {

using detail::refuse;

struct Named {
  std::string name;
  std::function<void(GateConfig&)> fill;
};

void normalised(GateConfig& gate, Score score) {
  gate.score = score;
  // With one expert a normalised weight would always be 1 and the router would learn nothing.
  gate.weights = gate.top_k > 1 ? WeightRule::sum : WeightRule::score;
}

const std::vector<Named>& all_gates() {
  static const std::vector<Named> gates = {
      {"top1",
       [](GateConfig& gate) {
         gate.score = Score::softmax;
         gate.weights = WeightRule::score;
       }},
      {"topk-hard",
       [](GateConfig& gate) {
         gate.weights = WeightRule::mean;
         gate.straight_through = true;
       }},
      {"softk", [](GateConfig&) {}},
      {"pre-softmax",
       [](GateConfig& gate) {
         gate.score = Score::softmax;
         gate.weights = WeightRule::score;
       }},
      {"pre-softmax-renorm", [](GateConfig& gate) { normalised(gate, Score::softmax); }},
      {"sigmoid", [](GateConfig& gate) { normalised(gate, Score::sigmoid); }},
      {"sqrt-softplus", [](GateConfig& gate) { normalised(gate, Score::sqrt_softplus); }},
      {"deepseek-v2",
       [](GateConfig& gate) {
         gate.score = Score::softmax;
         gate.weights = WeightRule::score;
         gate.groups = 8;
         gate.top_groups = 3;
         gate.group_best = 1;
         gate.scale = 16.0;
       }},
      {"deepseek-v3",
       [](GateConfig& gate) {
         normalised(gate, Score::sigmoid);
         gate.groups = 8;
         gate.top_groups = 4;
         gate.group_best = 2;
         gate.scale = 2.5;
       }},
      {"expert-choice",
       [](GateConfig& gate) {
         gate.selection = Selection::expert_choice;
         gate.score = Score::softmax;
         gate.weights = WeightRule::score;
       }},
      {"hash",
       [](GateConfig& gate) {
         gate.selection = Selection::hash;
         gate.weights = WeightRule::mean;
       }},
      {"sinkhorn",
       [](GateConfig& gate) {
         gate.selection = Selection::sinkhorn;
         gate.score = gate.top_k == 1 ? Score::sigmoid : Score::softmax;
         gate.weights = WeightRule::score;
       }},
      {"quantile", [](GateConfig&) {}},
      {"compat-top1", [](GateConfig& gate) { gate.weights = WeightRule::one; }},
      {"compat-topk-hard", [](GateConfig& gate) { gate.weights = WeightRule::one; }},
      {"compat-softk", [](GateConfig&) {}},
      {"compat-softk-sum", [](GateConfig& gate) { gate.weights = WeightRule::relu_sum; }},
      {"compat-hash",
       [](GateConfig& gate) {
         gate.selection = Selection::compat_hash;
         gate.weights = WeightRule::mean;
       }},
      {"compat-expert-choice", [](GateConfig& gate) { gate.selection = Selection::compat_expert_choice; }},
  };
  return gates;
}

bool is_hash(Selection selection) {
  return selection == Selection::hash || selection == Selection::compat_hash;
}

void check_groups(const GateConfig& gate) {
  if (gate.groups < 1 || gate.num_experts % gate.groups != 0) {
    std::string divisors;
    for (std::int32_t d = 1; d <= gate.num_experts; ++d) {
      if (gate.num_experts % d == 0) divisors += fmt::format("{}{}", divisors.empty() ? "" : ", ", d);
    }
    refuse("gate {}: {} groups do not divide {} experts; allowed are {}", gate.name, gate.groups,
           gate.num_experts, divisors);
  }
  const std::int32_t size = gate.num_experts / gate.groups;
  if (gate.top_groups < 1 || gate.top_groups > gate.groups)
    refuse("gate {}: top groups {} is outside [1, {}], the number of groups", gate.name, gate.top_groups,
           gate.groups);
  if (std::int64_t{gate.top_groups} * size < gate.top_k)
    refuse("gate {}: {} groups of {} experts hold {} experts, fewer than top-k {}", gate.name,
           gate.top_groups, size, std::int64_t{gate.top_groups} * size, gate.top_k);
  if (gate.group_best < 0)
    refuse("gate {}: the best {} of a group; allowed are 0 (top-k / top groups) and more", gate.name,
           gate.group_best);
  if (gate.groups > 1 && gate.selection != Selection::top_k)
    refuse("gate {}: {} groups; only gates in which tokens choose by score can be limited to groups",
           gate.name, gate.groups);
}

void check_weights(const GateConfig& gate) {
  const bool from_score = gate.weights == WeightRule::score || gate.weights == WeightRule::sum ||
                          gate.weights == WeightRule::p_norm;
  if (from_score && gate.score == Score::logit)
    refuse(
        "gate {}: weights from scores need scores that are not negative: softmax, sigmoid or sqrt_softplus",
        gate.name);
  if (is_hash(gate.selection) && gate.weights != WeightRule::mean && gate.weights != WeightRule::one)
    refuse("gate {}: a hash has no scores; its weights can only be mean or one", gate.name);
  if (gate.selection == Selection::expert_choice && gate.weights != WeightRule::score)
    refuse("gate {}: tokens have different numbers of experts; weights can only be scores", gate.name);
  if (gate.selection == Selection::compat_expert_choice && gate.weights != WeightRule::softmax_chosen)
    refuse("gate {}: the old expert choice weighs by a softmax over the chosen; weights can only be that",
           gate.name);
  if (gate.straight_through &&
      (is_hash(gate.selection) || (gate.weights != WeightRule::mean && gate.weights != WeightRule::one)))
    refuse("gate {}: straight_through is for weights mean and one of experts that were chosen by score",
           gate.name);
}

}  // namespace

const std::vector<std::string>& gate_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all;
    for (const Named& gate : all_gates()) all.push_back(gate.name);
    return all;
  }();
  return names;
}

GateConfig make_gate(std::string_view name, std::int32_t num_experts, std::int32_t top_k) {
  std::string wanted(name);
  std::replace(wanted.begin(), wanted.end(), '_', '-');
  for (const Named& known : all_gates()) {
    if (known.name != wanted) continue;
    GateConfig gate;
    gate.name = wanted;
    gate.num_experts = num_experts;
    gate.top_k = top_k;
    known.fill(gate);
    if ((wanted == "top1" || wanted == "compat-top1") && top_k != 1)
      refuse("gate {}: top-k {} is not allowed; a token gets 1 expert", wanted, top_k);
    check_gate(gate);
    return gate;
  }
  refuse("gate \"{}\" is not known; {}", name, allowed_names(wanted, gate_names()));
}

void check_gate(const GateConfig& gate) {
  if (gate.num_experts < 1) refuse("gate {}: {} experts; at least 1 is needed", gate.name, gate.num_experts);
  if (gate.top_k < 1 || gate.top_k > gate.num_experts)
    refuse("gate {}: top-k {} is outside [1, {}], the number of experts", gate.name, gate.top_k,
           gate.num_experts);
  const auto positive = [&gate](const char* what, double value) {
    if (!(std::isfinite(value) && value > 0))
      refuse("gate {}: {} {} is not a finite number > 0", gate.name, what, value);
  };
  // Used in float32 too, where less is 0 or has lost its digits, and more is infinite.
  const auto positive_float = [&gate](const char* what, double value) {
    using Limits = std::numeric_limits<float>;
    if (!(value >= double{Limits::min()} && value <= double{Limits::max()}))
      refuse("gate {}: {} {} is outside [{:.4g}, {:.4g}]", gate.name, what, value, Limits::min(),
             Limits::max());
  };
  positive_float("temperature", gate.temperature);
  positive_float("scale", gate.scale);
  positive("capacity factor", gate.capacity_factor);
  positive("tolerance", gate.tolerance);
  if (!(std::isfinite(gate.norm_power) && gate.norm_power >= 1))
    refuse("gate {}: norm power {} is not a finite number >= 1", gate.name, gate.norm_power);
  if (gate.max_rounds < 1) refuse("gate {}: {} rounds; at least 1 is needed", gate.name, gate.max_rounds);
  check_groups(gate);
  check_weights(gate);
}

}  // namespace shunt

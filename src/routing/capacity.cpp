#include <shunt/routing/capacity.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include <shunt/core/nearest.h>

#include "scores.h"

namespace shunt {
namespace {

using detail::at;
using detail::refuse;

constexpr std::int64_t kMostRows = std::numeric_limits<std::int32_t>::max();

template <class Enum>
using Names = std::vector<std::pair<std::string, Enum>>;

template <class Enum>
Enum parse_name(std::string_view what, std::string_view given, const Names<Enum>& names) {
  std::string wanted(given);
  std::replace(wanted.begin(), wanted.end(), '_', '-');
  std::vector<std::string> known;
  for (const auto& [name, value] : names) {
    if (name == wanted) return value;
    known.push_back(name);
  }
  refuse("{} \"{}\" is not known; {}", what, given, allowed_names(wanted, known));
}

void check_rule(const CapacityRule& rule, std::int64_t tokens, std::int32_t top_k, std::int32_t experts) {
  const char* name = capacity_formula_name(rule.formula);
  if (tokens < 0) refuse("capacity ({}): {} tokens; at least 0 are needed", name, tokens);
  if (experts < 1) refuse("capacity ({}): {} experts; at least 1 is needed", name, experts);
  if (top_k < 1 || top_k > experts)
    refuse("capacity ({}): top-k {} is outside [1, {}], the number of experts", name, top_k, experts);
  const bool may_be_zero =
      rule.formula == CapacityFormula::megablocks || rule.formula == CapacityFormula::tutel;
  const bool allowed =
      std::isfinite(rule.factor) && (rule.factor > 0 || (may_be_zero && rule.factor == 0) ||
                                     (rule.formula == CapacityFormula::tutel && rule.factor < 0));
  if (!allowed) {
    const char* range = rule.formula == CapacityFormula::tutel ? "is not a finite number"
                        : may_be_zero                          ? "is not a finite number >= 0"
                                                               : "is not a finite number > 0";
    refuse("capacity ({}): factor {} {}", name, rule.factor, range);
  }
  if (rule.min_capacity < 0) refuse("capacity ({}): minimum {} is below 0", name, rule.min_capacity);
  if (rule.alignment < 1) refuse("capacity ({}): alignment {} is below 1", name, rule.alignment);
  if (rule.ranks < 1) refuse("capacity ({}): {} ranks; at least 1 is needed", name, rule.ranks);
}

/// Visits all selections that are not -1 in the order in which they take places: visit(index).
template <class Real, class Visit>
void visit_in_order(const GateOutput<Real>& gate, DropOrder order, std::span<const Real> priorities,
                    const Visit& visit) {
  const std::int64_t tokens = gate.num_tokens;
  const std::int64_t k = gate.top_k;
  const auto one = [&gate, &visit](std::int64_t i) {
    if (gate.ids[at(i)] >= 0) visit(i);
  };
  if (order == DropOrder::token_major) {
    for (std::int64_t i = 0; i < tokens * k; ++i) one(i);
    return;
  }
  if (order == DropOrder::probability) {
    std::vector<std::int64_t> sorted(at(tokens * k));
    std::iota(sorted.begin(), sorted.end(), std::int64_t{0});
    std::stable_sort(sorted.begin(), sorted.end(), [&gate](std::int64_t a, std::int64_t b) {
      return gate.weights[at(a)] > gate.weights[at(b)];
    });
    for (const std::int64_t i : sorted) one(i);
    return;
  }
  std::vector<std::int64_t> by_token(at(tokens));
  std::iota(by_token.begin(), by_token.end(), std::int64_t{0});
  if (order == DropOrder::batch_prioritised) {
    std::vector<Real> own;
    if (priorities.empty()) {
      own.assign(at(tokens), -std::numeric_limits<Real>::infinity());
      for (std::int64_t i = 0; i < tokens * k; ++i)
        own[at(i / k)] = std::max(own[at(i / k)], gate.weights[at(i)]);
      priorities = own;
    }
    std::stable_sort(by_token.begin(), by_token.end(), [&priorities](std::int64_t a, std::int64_t b) {
      return priorities[at(a)] > priorities[at(b)];
    });
  }
  for (std::int64_t slot = 0; slot < k; ++slot) {
    for (const std::int64_t t : by_token) one(t * k + slot);
  }
}

template <class Real>
void check_plan_input(const GateOutput<Real>& gate, const CapacityOptions& options,
                      std::span<const Real> priorities) {
  if (options.mode != CapacityMode::dropless && options.capacity < 1)
    refuse("capacity {} is not allowed; an expert takes at least 1 token", options.capacity);
  if (options.alignment < 1 || options.alignment > kMostRows)
    refuse("capacity: alignment {} is outside [1, {}]", options.alignment, kMostRows);
  const auto selections = at(gate.num_tokens * gate.top_k);
  if (gate.num_tokens < 0 || gate.num_experts < 1 || gate.top_k < 1 || gate.ids.size() != selections ||
      gate.weights.size() != selections)
    refuse("capacity: {} ids and {} weights for {} tokens with {} choices among {} experts", gate.ids.size(),
           gate.weights.size(), gate.num_tokens, gate.top_k, gate.num_experts);
  for (std::size_t i = 0; i < gate.ids.size(); ++i) {
    const auto k = at(gate.top_k);
    if (gate.ids[i] < -1 || gate.ids[i] >= gate.num_experts)
      refuse("capacity: token {}, k {}: expert {} is outside [-1, {}]", i / k, i % k, gate.ids[i],
             gate.num_experts - 1);
    if (std::isnan(gate.weights[i]))
      refuse("capacity: token {}, k {}: the weight is not a number", i / k, i % k);
  }
  if (priorities.empty()) return;
  if (options.order != DropOrder::batch_prioritised)
    refuse("capacity: priorities of {} tokens; only batch_prioritised looks at them", priorities.size());
  if (priorities.size() != at(gate.num_tokens))
    refuse("capacity: priorities of {} tokens for {} tokens", priorities.size(), gate.num_tokens);
  for (std::size_t t = 0; t < priorities.size(); ++t) {
    if (std::isnan(priorities[t])) refuse("capacity: the priority of token {} is not a number", t);
  }
}

/// Token by token, the sum of all weights and that of the kept ones.
template <class Real>
struct TokenSums {
  Real all = 0, kept = 0;
};

template <class Real>
TokenSums<Real> token_sums(const GateOutput<Real>& gate, const CapacityPlan& plan, std::int64_t token) {
  TokenSums<Real> sums;
  for (std::int64_t i = token * gate.top_k; i < (token + 1) * gate.top_k; ++i) {
    if (gate.ids[at(i)] < 0) continue;
    sums.all += gate.weights[at(i)];
    if (plan.places[at(i)] >= 0) sums.kept += gate.weights[at(i)];
  }
  return sums;
}

template <class Real>
void check_same(const GateOutput<Real>& gate, const CapacityPlan& plan) {
  if (plan.num_tokens != gate.num_tokens || plan.top_k != gate.top_k ||
      plan.places.size() != gate.ids.size() || gate.weights.size() != gate.ids.size() ||
      gate.ids.size() != at(gate.num_tokens * gate.top_k))
    refuse("drops: a plan of {} tokens with {} choices for a gate of {} tokens with {}", plan.num_tokens,
           plan.top_k, gate.num_tokens, gate.top_k);
}

}  // namespace

const char* capacity_formula_name(CapacityFormula formula) noexcept {
  switch (formula) {
    case CapacityFormula::ceil:
      return "ceil";
    case CapacityFormula::megatron:
      return "megatron";
    case CapacityFormula::megablocks:
      return "megablocks";
    case CapacityFormula::tutel:
      return "tutel";
    case CapacityFormula::compat_sweep:
      return "compat-sweep";
    case CapacityFormula::compat_bench:
      return "compat-bench";
  }
  return "?";
}

std::int64_t expert_capacity(const CapacityRule& rule, std::int64_t num_tokens, std::int32_t top_k,
                             std::int32_t num_experts, std::int64_t max_load) {
  check_rule(rule, num_tokens, top_k, num_experts);
  const char* name = capacity_formula_name(rule.formula);
  const auto largest_load = [&] {
    if (max_load < 0)
      refuse("capacity ({}): factor {} asks for the largest load of an expert, which was not given", name,
             rule.factor);
    return static_cast<double>(max_load);
  };
  const auto tokens = static_cast<double>(num_tokens);
  const double selections = tokens * static_cast<double>(top_k);
  const auto experts = static_cast<double>(num_experts);
  double capacity = 0;
  switch (rule.formula) {
    case CapacityFormula::ceil:
      capacity = std::max(1.0, std::ceil(rule.factor * (selections / experts)));
      break;
    case CapacityFormula::megatron:
      capacity = std::ceil(selections / experts * rule.factor);
      break;
    case CapacityFormula::megablocks:
      capacity = std::floor(rule.factor * (selections * static_cast<double>(rule.ranks) / experts));
      if (capacity == 0) capacity = largest_load();
      break;
    case CapacityFormula::tutel: {
      const double each = std::ceil(tokens / experts);
      const double wanted = static_cast<double>(top_k) * std::floor(std::abs(rule.factor) * each);
      if (rule.factor > 0)
        capacity = wanted;
      else
        capacity = rule.factor == 0 ? largest_load() : std::min(largest_load(), wanted);
      break;
    }
    case CapacityFormula::compat_sweep:
      capacity = std::max(1.0, std::floor(rule.factor * selections / experts + 0.9999));
      break;
    case CapacityFormula::compat_bench:
      capacity = static_cast<double>(
          std::ceil(static_cast<float>(rule.factor) * static_cast<float>(selections / experts)));
      break;
  }
  const auto most = [&](auto rows) {
    if (static_cast<double>(rows) > static_cast<double>(kMostRows))
      refuse(
          "capacity ({}): {} tokens per expert (factor {}, {} tokens, top-k {}, {} experts, minimum {}, "
          "alignment "
          "{}); at most {} are allowed",
          name, rows, rule.factor, num_tokens, top_k, num_experts, rule.min_capacity, rule.alignment,
          kMostRows);
  };
  most(capacity);
  most(rule.min_capacity);
  most(rule.alignment);
  std::int64_t result = std::max(static_cast<std::int64_t>(capacity), rule.min_capacity);
  result = (result + rule.alignment - 1) / rule.alignment * rule.alignment;
  most(result);
  if (result < 1)
    refuse(
        "capacity ({}): factor {} leaves 0 tokens per expert ({} tokens, top-k {}, {} experts); at least "
        "1 is needed",
        name, rule.factor, num_tokens, top_k, num_experts);
  return result;
}

CapacityFormula parse_capacity_formula(std::string_view name) {
  static const Names<CapacityFormula> names = {{"ceil", CapacityFormula::ceil},
                                               {"megatron", CapacityFormula::megatron},
                                               {"megablocks", CapacityFormula::megablocks},
                                               {"tutel", CapacityFormula::tutel},
                                               {"compat-sweep", CapacityFormula::compat_sweep},
                                               {"compat-bench", CapacityFormula::compat_bench}};
  return parse_name("capacity formula", name, names);
}

DropOrder parse_drop_order(std::string_view name) {
  static const Names<DropOrder> names = {{"token-major", DropOrder::token_major},
                                         {"k-major", DropOrder::k_major},
                                         {"batch-prioritised", DropOrder::batch_prioritised},
                                         {"probability", DropOrder::probability}};
  return parse_name("drop order", name, names);
}

double CapacityPlan::drop_rate() const noexcept {
  return num_selections == 0 ? 0.0 : static_cast<double>(num_dropped) / static_cast<double>(num_selections);
}

double CapacityPlan::token_drop_rate() const noexcept {
  return num_tokens == 0 ? 0.0 : static_cast<double>(tokens_without) / static_cast<double>(num_tokens);
}

double CapacityPlan::used_capacity() const noexcept {
  if (largest_capacity == 0 || kept.empty()) return 0.0;
  return static_cast<double>(*std::max_element(kept.begin(), kept.end())) /
         static_cast<double>(largest_capacity);
}

template <class Real>
CapacityPlan plan_capacity(const GateOutput<Real>& gate, const CapacityOptions& options,
                           std::span<const Real> priorities) {
  check_plan_input(gate, options, priorities);
  const std::int64_t k = gate.top_k;
  CapacityPlan plan;
  plan.num_tokens = gate.num_tokens;
  plan.top_k = gate.top_k;
  plan.counts = expert_counts(gate);
  // Places and rows of an expert are 32-bit numbers.
  for (std::size_t e = 0; e < plan.counts.size(); ++e)
    if (options.mode == CapacityMode::dropless && plan.counts[e] > kMostRows)
      refuse("capacity: {} tokens for expert {}; an expert takes at most {}", plan.counts[e], e, kMostRows);
  plan.places.assign(gate.ids.size(), -1);
  plan.kept.assign(plan.counts.size(), 0);
  const bool dropless = options.mode == CapacityMode::dropless;
  plan.largest_capacity =
      dropless ? *std::max_element(plan.counts.begin(), plan.counts.end()) : options.capacity;

  // First who stays, then where: places go by token, whatever the order of dropping was.
  visit_in_order(gate, dropless ? DropOrder::token_major : options.order, priorities, [&](std::int64_t i) {
    std::int64_t& kept = plan.kept[at(gate.ids[at(i)])];
    if (kept == plan.largest_capacity) return;
    ++kept;
    plan.places[at(i)] = 0;
  });
  std::vector<std::int32_t> next(plan.kept.size(), 0);
  for (std::int64_t t = 0; t < gate.num_tokens; ++t) {
    std::int64_t wanted = 0, stayed = 0;
    for (std::int64_t i = t * k; i < (t + 1) * k; ++i) {
      if (gate.ids[at(i)] < 0) continue;
      ++wanted;
      if (plan.places[at(i)] < 0) continue;
      ++stayed;
      plan.places[at(i)] = next[at(gate.ids[at(i)])]++;
    }
    plan.num_selections += wanted;
    plan.num_dropped += wanted - stayed;
    if (wanted > 0 && stayed == 0) ++plan.tokens_without;
  }
  plan.starts.assign(1, 0);
  for (const std::int64_t kept : plan.kept) {
    const std::int64_t rows = options.mode == CapacityMode::pad
                                  ? options.capacity
                                  : (kept + options.alignment - 1) / options.alignment * options.alignment;
    plan.starts.push_back(plan.starts.back() + rows);
  }
  return plan;
}

template <class Real>
std::vector<Real> largest_probability(View2<const Real> logits) {
  detail::check_finite(logits, "largest probability");
  std::vector<Real> largest;
  std::vector<Real> scores(at(logits.cols));
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    detail::make_scores(Score::softmax, Real(1), logits.row(t), logits.cols, scores.data());
    largest.push_back(*std::max_element(scores.begin(), scores.end()));
  }
  return largest;
}

template <class Real>
GateOutput<Real> apply_drops(const GateOutput<Real>& gate, const CapacityPlan& plan,
                             Renormalise renormalise) {
  check_same(gate, plan);
  GateOutput<Real> out = gate;
  for (std::int64_t t = 0; t < gate.num_tokens; ++t) {
    const TokenSums<Real> sums = token_sums(gate, plan, t);
    Real factor = 1;
    if (renormalise != Renormalise::no && sums.kept > 0)
      factor = (renormalise == Renormalise::to_one ? Real(1) : sums.all) / sums.kept;
    for (std::int64_t i = t * gate.top_k; i < (t + 1) * gate.top_k; ++i) {
      if (plan.places[at(i)] < 0) {
        out.ids[at(i)] = -1;
        out.weights[at(i)] = 0;
      } else {
        out.weights[at(i)] *= factor;
      }
    }
  }
  return out;
}

template <class Real>
std::vector<Real> apply_drops_backward(const GateOutput<Real>& gate, const CapacityPlan& plan,
                                       Renormalise renormalise, std::span<const Real> grad_weights) {
  check_same(gate, plan);
  if (grad_weights.size() != gate.ids.size())
    refuse("drops: gradients of {} weights; {} are needed", grad_weights.size(), gate.ids.size());
  std::vector<Real> grads(gate.ids.size(), Real(0));
  for (std::int64_t t = 0; t < gate.num_tokens; ++t) {
    const TokenSums<Real> sums = token_sums(gate, plan, t);
    const bool scaled = renormalise != Renormalise::no && sums.kept > 0;
    const Real target = renormalise == Renormalise::to_one ? Real(1) : sums.all;
    Real dot = 0;
    for (std::int64_t i = t * gate.top_k; scaled && i < (t + 1) * gate.top_k; ++i) {
      if (plan.places[at(i)] >= 0) dot += grad_weights[at(i)] * gate.weights[at(i)];
    }
    for (std::int64_t i = t * gate.top_k; i < (t + 1) * gate.top_k; ++i) {
      if (gate.ids[at(i)] < 0) continue;
      const bool kept = plan.places[at(i)] >= 0;
      if (!scaled) {
        if (kept) grads[at(i)] = grad_weights[at(i)];
        continue;
      }
      if (kept)
        grads[at(i)] = grad_weights[at(i)] * target / sums.kept - dot * target / (sums.kept * sums.kept);
      if (renormalise == Renormalise::keep_sum) grads[at(i)] += dot / sums.kept;
    }
  }
  return grads;
}

template CapacityPlan plan_capacity(const GateOutput<float>&, const CapacityOptions&, std::span<const float>);
template CapacityPlan plan_capacity(const GateOutput<double>&, const CapacityOptions&,
                                    std::span<const double>);
template std::vector<float> largest_probability(View2<const float>);
template std::vector<double> largest_probability(View2<const double>);
template GateOutput<float> apply_drops(const GateOutput<float>&, const CapacityPlan&, Renormalise);
template GateOutput<double> apply_drops(const GateOutput<double>&, const CapacityPlan&, Renormalise);
template std::vector<float> apply_drops_backward(const GateOutput<float>&, const CapacityPlan&, Renormalise,
                                                 std::span<const float>);
template std::vector<double> apply_drops_backward(const GateOutput<double>&, const CapacityPlan&, Renormalise,
                                                  std::span<const double>);

}  // namespace shunt

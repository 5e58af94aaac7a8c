#pragma once

#include <cstdint>
#include <span>

#include <shunt/core/view.h>
#include <shunt/routing/gate.h>
#include <shunt/routing/routing.h>

namespace shunt {

/// How evenly experts are loaded. Without experts or selections all are 0, entropy included.
struct LoadStatistics {
  std::int64_t experts = 0;
  std::int64_t total = 0;  ///< Selections
  std::int64_t min = 0, max = 0;
  std::int64_t idle = 0;         ///< Experts with none
  double mean = 0;               ///< total / experts
  double cv = 0;                 ///< Population deviation / (mean + 1e-9): load_cv of moe-routing-bench
  double max_over_mean = 0;      ///< 1: even
  double max_vio = 0;            ///< max_over_mean - 1 (arXiv 2408.15664)
  double gini = 0;               ///< 0: even, 1 - 1/E: one expert has all
  double entropy = 0;            ///< Of the shares, in nats; ln E: even
  double effective_experts = 0;  ///< exp(entropy)
};
/// Errors: Errc::invalid_argument on a negative count.
[[nodiscard]] LoadStatistics describe_load(std::span<const std::int64_t> counts);

/// Selections per expert, [E].
[[nodiscard]] std::vector<std::int64_t> expert_counts(const Routing& routing);

/// How sure a gate is, over the tokens that have selections with a positive weight; weights are divided by the sum of
/// their token's first.
struct GateStatistics {
  std::int64_t tokens = 0;    ///< Counted
  double entropy = 0;         ///< mean_t of -sum_k g ln max(g, 1e-9), nats: gate_entropy of moe-routing-bench
  double mean_topk_prob = 0;  ///< mean_t of the largest g
  double experts_per_token = 0;  ///< Selections / T, over all tokens
};
template <class Real>
[[nodiscard]] GateStatistics describe_gate(const GateOutput<Real>& gate);
[[nodiscard]] GateStatistics describe_gate(const Routing& routing);

/// mean_t of the entropy of softmax(logits_t) over all experts, nats.
template <class Real>
[[nodiscard]] double mean_entropy(View2<const Real> logits);

}  // namespace shunt

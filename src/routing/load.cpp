#include <shunt/routing/load.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "scores.h"

namespace shunt {
namespace {

using detail::at;
using detail::refuse;

template <class Real>
GateStatistics describe(std::span<const std::int32_t> ids, std::span<const Real> weights, std::int64_t tokens,
                        std::int32_t top_k) {
  GateStatistics all;
  std::int64_t selections = 0;
  const auto k = at(top_k);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto of_ids = ids.subspan(at(t) * k, k);
    const auto of = weights.subspan(at(t) * k, k);
    double sum = 0, largest = 0;
    for (std::size_t i = 0; i < k; ++i) {
      if (of_ids[i] < 0) continue;
      ++selections;
      sum += static_cast<double>(of[i]);
      largest = std::max(largest, static_cast<double>(of[i]));
    }
    if (!(sum > 0)) continue;
    ++all.tokens;
    all.mean_topk_prob += largest / sum;
    for (std::size_t i = 0; i < k; ++i) {
      if (of_ids[i] < 0) continue;
      const double g = static_cast<double>(of[i]) / sum;
      all.entropy -= g * std::log(std::max(g, 1e-9));
    }
  }
  if (all.tokens > 0) {
    all.entropy /= static_cast<double>(all.tokens);
    all.mean_topk_prob /= static_cast<double>(all.tokens);
  }
  if (tokens > 0) all.experts_per_token = static_cast<double>(selections) / static_cast<double>(tokens);
  return all;
}

}  // namespace

LoadStatistics describe_load(std::span<const std::int64_t> counts) {
  LoadStatistics load;
  load.experts = static_cast<std::int64_t>(counts.size());
  for (std::size_t e = 0; e < counts.size(); ++e) {
    if (counts[e] < 0) refuse("load: the count of expert {} is {}; it must be >= 0", e, counts[e]);
    load.total += counts[e];
  }
  if (counts.empty()) return load;
  std::vector<std::int64_t> sorted(counts.begin(), counts.end());
  std::sort(sorted.begin(), sorted.end());
  load.min = sorted.front();
  load.max = sorted.back();
  load.idle = std::count(sorted.begin(), sorted.end(), 0);
  if (load.total == 0) return load;
  const auto experts = static_cast<double>(load.experts);
  const auto total = static_cast<double>(load.total);
  load.mean = total / experts;
  double variance = 0, ranked = 0;
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    const auto count = static_cast<double>(sorted[i]);
    variance += (count - load.mean) * (count - load.mean) / experts;
    ranked += static_cast<double>(i + 1) * count;
    if (count > 0) load.entropy -= count / total * std::log(count / total);
  }
  load.cv = std::sqrt(variance) / (load.mean + 1e-9);
  load.max_over_mean = static_cast<double>(load.max) / load.mean;
  load.max_vio = load.max_over_mean - 1;
  load.gini = 2 * ranked / (experts * total) - (experts + 1) / experts;
  load.effective_experts = std::exp(load.entropy);
  return load;
}

std::vector<std::int64_t> expert_counts(const Routing& routing) {
  std::vector<std::int64_t> counts(at(routing.num_experts), 0);
  for (const std::int32_t id : routing.ids) {
    if (id >= 0) ++counts[at(id)];
  }
  return counts;
}

template <class Real>
GateStatistics describe_gate(const GateOutput<Real>& gate) {
  return describe<Real>(gate.ids, gate.weights, gate.num_tokens, gate.top_k);
}

GateStatistics describe_gate(const Routing& routing) {
  return describe<float>(routing.ids, routing.weights, routing.num_tokens, routing.top_k);
}

template <class Real>
double mean_entropy(View2<const Real> logits) {
  detail::check_finite(logits, "entropy");
  if (logits.rows == 0) return 0;
  std::vector<double> z(at(logits.cols)), p(at(logits.cols));
  double all = 0;
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    for (std::int64_t e = 0; e < logits.cols; ++e) z[at(e)] = static_cast<double>(logits(t, e));
    detail::make_scores(Score::softmax, 1.0, z.data(), logits.cols, p.data());
    for (const double of : p) {
      if (of > 0) all -= of * std::log(of);
    }
  }
  return all / static_cast<double>(logits.rows);
}

template GateStatistics describe_gate(const GateOutput<float>&);
template GateStatistics describe_gate(const GateOutput<double>&);
template double mean_entropy(View2<const float>);
template double mean_entropy(View2<const double>);

}  // namespace shunt

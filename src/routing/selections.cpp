#include "selections.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <shunt/core/random.h>

#include "scores.h"
#include "streams.h"

namespace shunt::detail {
namespace {

/// For each expert, the `wanted` tokens with the largest value, ties by index; values [T, E].
template <class Real>
std::vector<std::vector<std::int64_t>> best_tokens(const std::vector<Real>& values, std::int64_t tokens,
                                                   std::int64_t experts, std::int64_t wanted) {
  std::vector<std::vector<std::int64_t>> best(at(experts));
  std::vector<std::int64_t> order(at(tokens));
  std::vector<Real> column(at(tokens));
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t t = 0; t < tokens; ++t) column[at(t)] = values[at(t * experts + e)];
    std::iota(order.begin(), order.end(), std::int64_t{0});
    std::partial_sort(order.begin(), order.begin() + wanted, order.end(),
                      [&column](std::int64_t a, std::int64_t b) {
                        const Real x = column[at(a)];
                        const Real y = column[at(b)];
                        return x != y ? x > y : a < b;
                      });
    best[at(e)].assign(order.begin(), order.begin() + wanted);
  }
  return best;
}

}  // namespace

template <class Real>
void choose_experts(const GateConfig& gate, View2<const Real> logits, GateOutput<Real>& out) {
  const std::int64_t tokens = logits.rows;
  const std::int64_t experts = logits.cols;
  std::vector<Real> scores(at(tokens * experts));
  for (std::int64_t t = 0; t < tokens; ++t)
    make_scores(gate.score, static_cast<Real>(gate.temperature), logits.row(t), experts,
                scores.data() + t * experts);
  const double wanted = std::ceil(gate.capacity_factor * static_cast<double>(tokens * gate.top_k) /
                                  static_cast<double>(experts));
  const std::int64_t each = wanted < static_cast<double>(tokens) ? static_cast<std::int64_t>(wanted) : tokens;
  std::vector<std::vector<std::int32_t>> chosen_by(at(tokens));
  const auto best = best_tokens(scores, tokens, experts, each);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (const std::int64_t t : best[at(e)]) chosen_by[at(t)].push_back(static_cast<std::int32_t>(e));
  }
  std::size_t width = 1;
  for (const auto& experts_of : chosen_by) width = std::max(width, experts_of.size());
  out.top_k = static_cast<std::int32_t>(width);
  out.ids.assign(at(tokens) * width, -1);
  out.weights.assign(out.ids.size(), Real(0));
  for (std::int64_t t = 0; t < tokens; ++t) {
    auto& experts_of = chosen_by[at(t)];
    const Real* of = scores.data() + t * experts;
    // Experts came in rising order, so a stable sort breaks ties by index.
    std::stable_sort(experts_of.begin(), experts_of.end(),
                     [of](std::int32_t a, std::int32_t b) { return of[a] > of[b]; });
    for (std::size_t k = 0; k < experts_of.size(); ++k) {
      out.ids[at(t) * width + k] = experts_of[k];
      out.weights[at(t) * width + k] = of[experts_of[k]];
    }
  }
}

template <class Real>
void choose_like_the_old_system(const GateConfig& gate, View2<const Real> logits, GateOutput<Real>& out) {
  constexpr std::int64_t kMostTokens = 64;
  const std::int64_t tokens = logits.rows;
  const std::int64_t experts = logits.cols;
  std::vector<Real> values(at(tokens * experts));
  for (std::int64_t t = 0; t < tokens; ++t) std::copy_n(logits.row(t), experts, values.data() + t * experts);
  // Divided first, as there: 10 tokens, 3 experts, top-2 and 1.05 make 8, not 7.
  const double wanted = std::ceil(gate.capacity_factor *
                                  (static_cast<double>(tokens * gate.top_k) / static_cast<double>(experts)));
  const std::int64_t most = std::min(tokens, kMostTokens);
  const std::int64_t each = wanted < static_cast<double>(most) ? static_cast<std::int64_t>(wanted) : most;
  const auto best = best_tokens(values, tokens, experts, each);
  std::vector<char> chose(values.size(), 0);
  std::vector<char> is_chosen(at(tokens), 0);
  for (std::int64_t e = 0; e < experts; ++e) {
    for (const std::int64_t t : best[at(e)]) {
      chose[at(t * experts + e)] = 1;
      is_chosen[at(t)] = 1;
    }
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    Real* row = values.data() + t * experts;
    if (is_chosen[at(t)] != 0) {
      for (std::int64_t e = 0; e < experts; ++e) {
        if (chose[at(t * experts + e)] == 0) row[e] = -std::numeric_limits<Real>::infinity();
      }
    }
    std::int32_t* ids = out.ids.data() + t * out.top_k;
    Real* weights = out.weights.data() + t * out.top_k;
    select_largest(row, experts, out.top_k, ids);
    Real sum = 0;
    for (std::int32_t k = 0; k < out.top_k; ++k)
      sum += weights[k] = std::exp((row[ids[k]] - row[ids[0]]) / static_cast<Real>(gate.temperature));
    for (std::int32_t k = 0; k < out.top_k; ++k) weights[k] /= sum;
  }
}

template <class Real>
void choose_balanced(const GateConfig& gate, View2<const Real> logits, GateOutput<Real>& out) {
  const std::int64_t experts = logits.cols;
  std::vector<Real> plan;
  if (gate.training && logits.rows > 0) {
    std::vector<Real> tempered(at(logits.rows * experts));
    for (std::int64_t t = 0; t < logits.rows; ++t)
      make_scores(Score::logit, static_cast<Real>(gate.temperature), logits.row(t), experts,
                  tempered.data() + t * experts);
    plan = sinkhorn<Real>({tempered.data(), logits.rows, experts}, gate.tolerance, gate.max_rounds).plan;
  }
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const Real* compared = plan.empty() ? logits.row(t) : plan.data() + t * experts;
    select_largest(compared, experts, out.top_k, out.ids.data() + t * out.top_k);
  }
}

void choose_by_hash(const GateConfig& gate, std::span<const std::int64_t> token_ids,
                    std::vector<std::int32_t>& ids) {
  const std::uint64_t seed = purpose_seed(gate.seed, Purpose::hash_gate);
  std::vector<std::int32_t> taken;
  std::size_t next = 0;
  for (const std::int64_t token : token_ids) {
    Random random(seed, static_cast<std::uint64_t>(token));
    taken.clear();
    for (std::int32_t k = 0; k < gate.top_k; ++k) {
      // The draw counts the experts that are left; walking over the taken ones in order finds it.
      auto expert = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(gate.num_experts - k)));
      auto place = taken.begin();
      for (; place != taken.end() && *place <= expert; ++place) ++expert;
      taken.insert(place, expert);
      ids[next++] = expert;
    }
  }
}

void choose_by_position(const GateConfig& gate, std::int64_t num_tokens, std::vector<std::int32_t>& ids) {
  std::size_t next = 0;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    // Signed 64-bit arithmetic of the original, which wraps beyond 7e9 positions; so do unsigned products.
    const auto mixed = static_cast<std::int64_t>(static_cast<std::uint64_t>(t) * 1315423911U + 2654435761U);
    const std::int64_t base = (mixed % gate.num_experts + gate.num_experts) % gate.num_experts;
    for (std::int64_t k = 0; k < gate.top_k; ++k)
      ids[next++] = static_cast<std::int32_t>((base + 97 * k) % gate.num_experts);
  }
}

template void choose_experts(const GateConfig&, View2<const float>, GateOutput<float>&);
template void choose_experts(const GateConfig&, View2<const double>, GateOutput<double>&);
template void choose_like_the_old_system(const GateConfig&, View2<const float>, GateOutput<float>&);
template void choose_like_the_old_system(const GateConfig&, View2<const double>, GateOutput<double>&);
template void choose_balanced(const GateConfig&, View2<const float>, GateOutput<float>&);
template void choose_balanced(const GateConfig&, View2<const double>, GateOutput<double>&);

}  // namespace shunt::detail

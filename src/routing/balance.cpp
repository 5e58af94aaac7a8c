#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include <shunt/core/random.h>
#include <shunt/routing/gate.h>

#include "scores.h"
#include "streams.h"

namespace shunt {
namespace {

using detail::at;
using detail::refuse;

}  // namespace

template <class Real>
void apply_jitter(View2<Real> x, double epsilon, std::uint64_t seed, std::int64_t first_token) {
  if (!(epsilon >= 0 && epsilon < 1)) refuse("jitter {} is outside [0, 1)", epsilon);
  if (epsilon == 0) return;
  const std::uint64_t of = detail::purpose_seed(seed, detail::Purpose::jitter);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    Random random(of, static_cast<std::uint64_t>(first_token + t));
    Real* row = x.row(t);
    for (std::int64_t h = 0; h < x.cols; ++h)
      row[h] *= static_cast<Real>(1 - epsilon + 2 * epsilon * random.uniform());
  }
}

template <class Real>
void add_logit_noise(View2<Real> logits, double deviation, std::uint64_t seed, std::int64_t first_token) {
  if (!(std::isfinite(deviation) && deviation >= 0))
    refuse("noise deviation {} is not a finite number >= 0", deviation);
  if (deviation == 0) return;
  const std::uint64_t of = detail::purpose_seed(seed, detail::Purpose::noise);
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    Random random(of, static_cast<std::uint64_t>(first_token + t));
    Real* row = logits.row(t);
    for (std::int64_t e = 0; e < logits.cols; ++e) row[e] += static_cast<Real>(deviation * random.normal());
  }
}

template <class Real>
SinkhornResult<Real> sinkhorn(View2<const Real> logits, double tolerance, std::int32_t max_rounds) {
  detail::check_finite(logits, "sinkhorn");
  if (!(tolerance > 0)) refuse("sinkhorn: tolerance {} is not a number > 0", tolerance);
  if (max_rounds < 1) refuse("sinkhorn: {} rounds; at least 1 is needed", max_rounds);
  const std::int64_t tokens = logits.rows;
  const std::int64_t experts = logits.cols;
  SinkhornResult<Real> result;
  if (tokens == 0) return result;
  constexpr double kTiny = 1e-8;
  std::vector<Real>& cost = result.plan;
  cost.resize(at(tokens * experts));
  for (std::int64_t t = 0; t < tokens; ++t) {
    const Real* z = logits.row(t);
    const Real largest = *std::max_element(z, z + experts);
    for (std::int64_t e = 0; e < experts; ++e) cost[at(t * experts + e)] = std::exp(z[e] - largest);
  }
  // Factors in double: what ends the rounds is the difference of nearly equal numbers.
  std::vector<double> rows(at(tokens)), columns(at(experts), 1.0), sums(at(experts));
  double change = tolerance + 1;
  while (change > tolerance && result.rounds < max_rounds) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const Real* c = cost.data() + t * experts;
      double sum = 0;
      for (std::int64_t e = 0; e < experts; ++e) sum += columns[at(e)] * static_cast<double>(c[e]);
      rows[at(t)] = 1 / static_cast<double>(tokens) / (sum + kTiny);
      for (std::int64_t e = 0; e < experts; ++e) sums[at(e)] += rows[at(t)] * static_cast<double>(c[e]);
    }
    change = 0;
    for (std::int64_t e = 0; e < experts; ++e) {
      const double column = 1 / static_cast<double>(experts) / (sums[at(e)] + kTiny);
      change += std::abs(columns[at(e)] - column);
      columns[at(e)] = column;
    }
    change /= static_cast<double>(experts);
    ++result.rounds;
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t e = 0; e < experts; ++e) {
      Real& c = cost[at(t * experts + e)];
      c = static_cast<Real>(columns[at(e)] * static_cast<double>(c) * rows[at(t)]);
    }
  }
  return result;
}

template <class Real>
void update_bias(std::span<Real> bias, std::span<const std::int64_t> counts, double rate) {
  if (bias.empty() || bias.size() != counts.size())
    refuse("bias update: a bias of {} experts and counts of {}; both must be of the same, at least 1",
           bias.size(), counts.size());
  if (!(std::isfinite(rate) && rate >= 0)) refuse("bias update: rate {} is not a finite number >= 0", rate);
  // count * E against the total, so that the comparison with the mean is exact.
  const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  const auto experts = static_cast<std::int64_t>(counts.size());
  for (std::size_t e = 0; e < bias.size(); ++e) {
    const std::int64_t load = counts[e] * experts;
    if (load < total) bias[e] += static_cast<Real>(rate);
    if (load > total) bias[e] -= static_cast<Real>(rate);
  }
}

template <class Real>
void update_quantile_bias(View2<const Real> logits, std::int32_t top_k, std::span<Real> bias, double decay,
                          double temperature) {
  detail::check_finite(logits, "quantile balancing");
  const std::int64_t experts = logits.cols;
  if (static_cast<std::int64_t>(bias.size()) != experts)
    refuse("quantile balancing: a bias of {} experts; the logits have {}", bias.size(), experts);
  if (top_k < 1 || top_k >= experts)
    refuse("quantile balancing: top-k {} is outside [1, {}]; one expert of {} must be left over", top_k,
           experts - 1, experts);
  if (!(decay >= 0 && decay < 1)) refuse("quantile balancing: decay {} is outside [0, 1)", decay);
  if (!(std::isfinite(temperature) && temperature > 0))
    refuse("quantile balancing: temperature {} is not a finite number > 0", temperature);
  const auto score = [&](std::int64_t t, std::int64_t e) {
    return logits(t, e) / static_cast<Real>(temperature);
  };
  const std::int64_t tokens = logits.rows;
  if (tokens == 0) return;
  std::vector<Real> alphas(at(tokens)), biased(at(experts)), column(at(tokens));
  std::vector<std::int32_t> best(at(top_k) + 1);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t e = 0; e < experts; ++e) biased[at(e)] = score(t, e) + bias[at(e)];
    detail::select_largest(biased.data(), experts, std::int64_t{top_k} + 1, best.data());
    alphas[at(t)] = biased[at(best.back())];
  }
  const std::int64_t place = tokens * top_k / experts;
  for (std::int64_t e = 0; e < experts; ++e) {
    for (std::int64_t t = 0; t < tokens; ++t) column[at(t)] = score(t, e) - alphas[at(t)];
    std::nth_element(column.begin(), column.begin() + place, column.end(), std::greater<>());
    bias[at(e)] = static_cast<Real>(decay * static_cast<double>(bias[at(e)]) -
                                    (1 - decay) * static_cast<double>(column[at(place)]));
  }
}

template <class Real>
void balance_bias(const GateConfig& gate, View2<const Real> logits, std::int64_t steps, std::span<Real> bias,
                  double rate) {
  if (gate.selection != Selection::top_k)
    refuse("gate {}: no bias to balance; only gates in which tokens choose by score have one", gate.name);
  for (std::int64_t step = 0; step < steps; ++step) {
    if (gate.score == Score::logit)
      update_quantile_bias<Real>(logits, gate.top_k, bias, 0.0, gate.temperature);
    else
      update_bias<Real>(bias, expert_counts(gate_forward<Real>(gate, {.logits = logits, .bias = bias})),
                        rate);
  }
}

template void balance_bias(const GateConfig&, View2<const float>, std::int64_t, std::span<float>, double);
template void balance_bias(const GateConfig&, View2<const double>, std::int64_t, std::span<double>, double);
template void apply_jitter(View2<float>, double, std::uint64_t, std::int64_t);
template void apply_jitter(View2<double>, double, std::uint64_t, std::int64_t);
template void add_logit_noise(View2<float>, double, std::uint64_t, std::int64_t);
template void add_logit_noise(View2<double>, double, std::uint64_t, std::int64_t);
template SinkhornResult<float> sinkhorn(View2<const float>, double, std::int32_t);
template SinkhornResult<double> sinkhorn(View2<const double>, double, std::int32_t);
template void update_bias(std::span<float>, std::span<const std::int64_t>, double);
template void update_bias(std::span<double>, std::span<const std::int64_t>, double);
template void update_quantile_bias(View2<const float>, std::int32_t, std::span<float>, double, double);
template void update_quantile_bias(View2<const double>, std::int32_t, std::span<double>, double, double);

}  // namespace shunt

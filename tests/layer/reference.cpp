#include "reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace shunt::test {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

double activation(Activation kind, const double* before, std::int64_t i, std::int64_t ffn) {
  const double x = before[i];
  if (kind == Activation::gelu) return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
  const double silu = x / (1 + std::exp(-x));
  return kind == Activation::silu ? silu : silu * before[ffn + i];
}

/// One expert of `ffn` inner elements; weights of `experts` lie one behind the other.
void add_expert(const MoeLayerConfig& c, const std::vector<double>& weights, std::int64_t experts,
                std::int64_t expert, std::int64_t ffn, const double* x, double factor, double* out) {
  const std::int64_t h = c.hidden, inner = c.activation == Activation::swiglu ? 2 * ffn : ffn;
  const double* const w1 = weights.data() + expert * h * inner;
  const double* const w2 = weights.data() + experts * h * inner + expert * ffn * h;
  const double* const b1 = weights.data() + experts * (h * inner + ffn * h) + expert * inner;
  const double* const b2 = weights.data() + experts * (h * inner + ffn * h + inner) + expert * h;
  std::vector<double> before(at(inner));
  for (std::int64_t i = 0; i < inner; ++i) {
    double sum = c.bias ? b1[i] : 0;
    for (std::int64_t j = 0; j < h; ++j) sum += x[j] * w1[j * inner + i];
    before[at(i)] = sum;
  }
  for (std::int64_t j = 0; j < h; ++j) {
    double sum = c.bias ? b2[j] : 0;
    for (std::int64_t i = 0; i < ffn; ++i)
      sum += activation(c.activation, before.data(), i, ffn) * w2[i * h + j];
    out[j] += factor * sum;
  }
}

}  // namespace

Reference::Reference(MoeLayer& layer)
    : config(layer.config()),
      router(layer.router().parameters().begin(), layer.router().parameters().end()),
      experts(layer.experts().parameters().begin(), layer.experts().parameters().end()) {
  if (layer.shared() != nullptr)
    shared.assign(layer.shared()->parameters().begin(), layer.shared()->parameters().end());
}

std::vector<double> Reference::forward(const std::vector<double>& x, double& aux) const {
  const std::int64_t h = config.hidden, e = config.gate.num_experts, k = config.gate.top_k;
  const std::int64_t tokens = static_cast<std::int64_t>(x.size()) / h;
  std::vector<double> out(x.size(), 0.0);
  std::vector<std::int64_t> load(at(e), 0), taken(at(e), 0);
  std::vector<double> share(at(e), 0.0);
  const auto most =
      config.capacity_mode == CapacityMode::dropless
          ? tokens
          : std::max<std::int64_t>(
                1, static_cast<std::int64_t>(std::ceil(
                       config.capacity.factor * static_cast<double>(tokens * k) / static_cast<double>(e))));
  double squares = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<double> z(at(e));
    for (std::int64_t i = 0; i < e; ++i) {
      z[at(i)] = router[at(h * e + i)];
      for (std::int64_t j = 0; j < h; ++j) z[at(i)] += x[at(t * h + j)] * router[at(j * e + i)];
    }
    std::vector<std::int64_t> order(at(e));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&z](std::int64_t a, std::int64_t b) { return z[at(a)] > z[at(b)]; });
    double chosen = 0, all = 0;
    for (std::int64_t i = 0; i < k; ++i) chosen += std::exp(z[at(order[at(i)])]);
    for (std::int64_t i = 0; i < e; ++i) all += std::exp(z[at(i)]);
    for (std::int64_t i = 0; i < e; ++i) share[at(i)] += std::exp(z[at(i)]) / all;
    squares += std::log(all) * std::log(all);
    std::vector<double> weights(at(k), 0.0);
    double kept = 0;
    for (std::int64_t i = 0; i < k; ++i) {
      const std::int64_t expert = order[at(i)];
      ++load[at(expert)];
      if (taken[at(expert)] == most) continue;
      ++taken[at(expert)];
      weights[at(i)] = std::exp(z[at(expert)]) / chosen;
      kept += weights[at(i)];
    }
    for (std::int64_t i = 0; i < k; ++i) {
      if (weights[at(i)] == 0) continue;
      const double weight =
          config.renormalise == Renormalise::to_one ? weights[at(i)] / kept : weights[at(i)];
      add_expert(config, experts, e, order[at(i)], config.ffn, x.data() + t * h, weight, out.data() + t * h);
    }
    if (config.shared_experts > 0)
      add_expert(config, shared, 1, 0, config.ffn * config.shared_experts, x.data() + t * h, 1.0,
                 out.data() + t * h);
  }
  aux = 0;
  const auto n = static_cast<double>(tokens);
  if (tokens > 0) {
    for (std::int64_t i = 0; i < e; ++i)
      aux += config.balance * static_cast<double>(e) * static_cast<double>(load[at(i)]) /
             (n * static_cast<double>(k)) * share[at(i)] / n;
    aux += config.z_loss * squares / n;
  }
  return out;
}

double Reference::loss(const std::vector<double>& x, const std::vector<double>& by) const {
  double sum = 0;
  const std::vector<double> out = forward(x, sum);
  for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * by[i];
  return sum;
}

double slope(double& number, const Reference& reference, const std::vector<double>& x,
             const std::vector<double>& by) {
  constexpr double kStep = 1e-5;
  const double before = number;
  number = before + kStep;
  const double above = reference.loss(x, by);
  number = before - kStep;
  const double below = reference.loss(x, by);
  number = before;
  return (above - below) / (2 * kStep);
}

}  // namespace shunt::test

#include <shunt/routing/losses.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include <shunt/core/nearest.h>

#include "scores.h"

namespace shunt {
namespace {

using detail::at;
using detail::kInvSqrt2;
using detail::kInvSqrt2Pi;
using detail::refuse;

void check_coefficient(double coefficient, const char* origin) {
  if (!std::isfinite(coefficient)) refuse("{}: the coefficient {} is not finite", origin, coefficient);
}

/// Probabilities P of one token: scores that sum to 1. Returns the sum of the scores before.
template <class Real>
Real make_probabilities(Score score, const Real* z, std::int64_t experts, Real* scores, Real* p) {
  detail::make_scores(score, Real(1), z, experts, scores);
  if (score == Score::softmax) {
    std::copy_n(scores, experts, p);
    return 1;
  }
  Real sum = Real(1e-20);
  for (std::int64_t e = 0; e < experts; ++e) sum += scores[e];
  for (std::int64_t e = 0; e < experts; ++e) p[e] = scores[e] / sum;
  return sum;
}

/// Balance loss of consecutive tokens, added to `grad` with `factor`.
template <class Real>
class Balance {
 public:
  Balance(const BalanceLoss& loss, std::int64_t experts)
      : loss_(loss),
        experts_(experts),
        shares_(at(experts)),
        means_(at(experts)),
        scores_(at(experts)),
        p_(at(experts)),
        grads_(at(experts)) {}

  double operator()(View2<const Real> logits, std::int64_t first, std::int64_t tokens,
                    std::span<const std::int64_t> counts, double factor, View2<Real> grad) {
    count(logits, first, tokens, counts);
    std::fill(means_.begin(), means_.end(), 0.0);
    for (std::int64_t t = first; t < first + tokens; ++t) {
      make_probabilities(loss_.score, logits.row(t), experts_, scores_.data(), p_.data());
      for (std::int64_t e = 0; e < experts_; ++e) means_[at(e)] += static_cast<double>(p_[at(e)]);
    }
    const double strength = factor * static_cast<double>(experts_) / static_cast<double>(tokens);
    double value = 0;
    for (std::int64_t e = 0; e < experts_; ++e) value += strength * shares_[at(e)] * means_[at(e)];
    if (grad.data != nullptr) add_gradient(logits, first, tokens, strength, grad);
    return value;
  }

 private:
  void count(View2<const Real> logits, std::int64_t first, std::int64_t tokens,
             std::span<const std::int64_t> counts) {
    if (!counts.empty()) {
      const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
      for (std::int64_t e = 0; e < experts_; ++e)
        shares_[at(e)] = static_cast<double>(counts[at(e)]) / static_cast<double>(total);
      return;
    }
    const std::int64_t k = loss_.form == BalanceForm::gshard ? 1 : loss_.top_k;
    std::vector<std::int32_t> ids(at(k));
    std::fill(shares_.begin(), shares_.end(), 0.0);
    for (std::int64_t t = first; t < first + tokens; ++t) {
      // By logit: every score rises with it.
      detail::select_largest(logits.row(t), experts_, k, ids.data());
      for (const std::int32_t id : ids) shares_[at(id)] += 1.0;
    }
    for (double& share : shares_) share /= static_cast<double>(tokens * k);
  }

  void add_gradient(View2<const Real> logits, std::int64_t first, std::int64_t tokens, double strength,
                    View2<Real> grad) {
    for (std::int64_t t = first; t < first + tokens; ++t) {
      const Real* z = logits.row(t);
      const Real sum = make_probabilities(loss_.score, z, experts_, scores_.data(), p_.data());
      for (std::int64_t e = 0; e < experts_; ++e)
        grads_[at(e)] = static_cast<Real>(strength * shares_[at(e)]);
      if (loss_.score != Score::softmax) {
        Real dot = 0;
        for (std::int64_t e = 0; e < experts_; ++e) dot += grads_[at(e)] * p_[at(e)];
        for (Real& g : grads_) g = (g - dot) / sum;
      }
      detail::add_score_gradient(loss_.score, Real(1), z, scores_.data(), grads_.data(), experts_,
                                 grad.row(t));
    }
  }

  const BalanceLoss& loss_;
  std::int64_t experts_;
  std::vector<double> shares_, means_;
  std::vector<Real> scores_, p_, grads_;
};

void check_balance(const BalanceLoss& loss, std::int64_t tokens, std::int64_t experts,
                   std::span<const std::int64_t> counts) {
  check_coefficient(loss.coefficient, "balance loss");
  if (loss.top_k < 1 || loss.top_k > experts)
    refuse("balance loss: top-k {} is outside [1, {}], the number of experts", loss.top_k, experts);
  if (loss.score == Score::logit)
    refuse("balance loss: logits are no probabilities; allowed are softmax, sigmoid, sqrt_softplus");
  if (loss.sequence_tokens < 0 || (loss.sequence_tokens > 0 && tokens % loss.sequence_tokens != 0))
    refuse("balance loss: sequences of {} tokens do not divide {} tokens", loss.sequence_tokens, tokens);
  if (counts.empty()) return;
  if (loss.sequence_tokens > 0)
    refuse("balance loss: counts of the global batch and sequences of {} tokens exclude each other",
           loss.sequence_tokens);
  if (static_cast<std::int64_t>(counts.size()) != experts)
    refuse("balance loss: counts of {} experts; the logits have {}", counts.size(), experts);
  std::int64_t total = 0;
  for (std::size_t e = 0; e < counts.size(); ++e) {
    if (counts[e] < 0) refuse("balance loss: the count of expert {} is {}; it must be >= 0", e, counts[e]);
    total += counts[e];
  }
  if (total == 0) refuse("balance loss: all counts are 0; the global batch must have choices");
}

/// Squared coefficient of variation (population) and its gradient by each value.
double squared_cv(const std::vector<double>& values, std::vector<double>& grads) {
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double variance = 0;
  for (const double value : values) variance += (value - mean) * (value - mean) / n;
  const double below = mean * mean + 1e-10;
  for (std::size_t e = 0; e < values.size(); ++e)
    grads[e] = 2 * (values[e] - mean) / n / below - variance / (below * below) * 2 * mean / n;
  return variance / below;
}

/// For each expert of one token, who holds the k-th largest noisy logit without that expert.
template <class Real>
class Thresholds {
 public:
  Thresholds(std::int32_t top_k, std::int64_t experts)
      : top_k_(top_k), experts_(experts), best_(at(top_k) + 1), chosen_(at(experts)) {}

  void look(const Real* noisy) {
    detail::select_largest(noisy, experts_, std::int64_t{top_k_} + 1, best_.data());
    std::fill(chosen_.begin(), chosen_.end(), 0);
    for (std::int32_t k = 0; k < top_k_; ++k) chosen_[at(best_[at(k)])] = 1;
  }
  [[nodiscard]] std::int32_t holder(std::int64_t expert) const {
    return chosen_[at(expert)] != 0 ? best_[at(top_k_)] : best_[at(top_k_) - 1];
  }

 private:
  std::int32_t top_k_;
  std::int64_t experts_;
  std::vector<std::int32_t> best_;
  std::vector<char> chosen_;
};

}  // namespace

BalanceForm parse_balance_form(std::string_view name) {
  const std::vector<std::string> known = {"switch", "mixtral", "gshard"};
  if (name == known[0]) return BalanceForm::switch_transformer;
  if (name == known[1]) return BalanceForm::mixtral;
  if (name == known[2]) return BalanceForm::gshard;
  refuse("balance loss \"{}\" is not known; {}", name, allowed_names(name, known));
}

template <class Real>
double balance_loss(const BalanceLoss& loss, View2<const Real> logits, std::span<const std::int64_t> counts,
                    View2<Real> grad_logits) {
  detail::check_finite(logits, "balance loss");
  detail::check_grad(logits, grad_logits, "balance loss");
  check_balance(loss, logits.rows, logits.cols, counts);
  if (logits.rows == 0) return 0;
  const double factor = loss.form == BalanceForm::mixtral ? loss.coefficient * static_cast<double>(loss.top_k)
                                                          : loss.coefficient;
  const std::int64_t tokens = loss.sequence_tokens > 0 ? loss.sequence_tokens : logits.rows;
  const std::int64_t sequences = logits.rows / tokens;
  Balance<Real> balance(loss, logits.cols);
  double value = 0;
  for (std::int64_t s = 0; s < sequences; ++s)
    value +=
        balance(logits, s * tokens, tokens, counts, factor / static_cast<double>(sequences), grad_logits);
  return value;
}

template <class Real>
double z_loss(double coefficient, View2<const Real> logits, View2<Real> grad_logits) {
  detail::check_finite(logits, "z-loss");
  detail::check_grad(logits, grad_logits, "z-loss");
  check_coefficient(coefficient, "z-loss");
  if (logits.rows == 0) return 0;
  std::vector<Real> p(at(logits.cols));
  const double each = coefficient / static_cast<double>(logits.rows);
  double value = 0;
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const Real* z = logits.row(t);
    const Real largest = *std::max_element(z, z + logits.cols);
    Real sum = 0;
    for (std::int64_t e = 0; e < logits.cols; ++e) sum += p[at(e)] = std::exp(z[e] - largest);
    const double log_sum = static_cast<double>(largest) + std::log(static_cast<double>(sum));
    value += each * log_sum * log_sum;
    if (grad_logits.data == nullptr) continue;
    const Real strength = static_cast<Real>(each * 2 * log_sum);
    for (std::int64_t e = 0; e < logits.cols; ++e) grad_logits(t, e) += strength * (p[at(e)] / sum);
  }
  return value;
}

template <class Real>
double importance_load_loss(double coefficient, std::int32_t top_k, double deviation,
                            View2<const Real> logits, View2<const Real> noisy, View2<Real> grad_logits) {
  constexpr const char* kOrigin = "importance and load loss";
  detail::check_finite(logits, kOrigin);
  detail::check_finite(noisy, kOrigin);
  detail::check_grad(logits, grad_logits, kOrigin);
  check_coefficient(coefficient, kOrigin);
  const std::int64_t tokens = logits.rows;
  const std::int64_t experts = logits.cols;
  if (noisy.rows != tokens || noisy.cols != experts)
    refuse("{}: noisy logits are [{}, {}], the logits [{}, {}]", kOrigin, noisy.rows, noisy.cols, tokens,
           experts);
  if (!(std::isfinite(deviation) && deviation > 0))
    refuse("{}: noise deviation {} is not a finite number > 0", kOrigin, deviation);
  if (top_k < 1 || top_k >= experts)
    refuse("{}: top-k {} is outside [1, {}]; one expert of {} must be left over", kOrigin, top_k, experts - 1,
           experts);
  if (tokens == 0) return 0;

  std::vector<Real> p(at(experts)), p_grads(at(experts));
  std::vector<double> importance(at(experts)), load(at(experts));
  Thresholds<Real> thresholds(top_k, experts);
  const auto distance = [&](std::int64_t t, std::int64_t e) {
    return (static_cast<double>(logits(t, e)) - static_cast<double>(noisy(t, thresholds.holder(e)))) /
           deviation;
  };
  for (std::int64_t t = 0; t < tokens; ++t) {
    detail::make_scores(Score::softmax, Real(1), logits.row(t), experts, p.data());
    thresholds.look(noisy.row(t));
    for (std::int64_t e = 0; e < experts; ++e) {
      importance[at(e)] += static_cast<double>(p[at(e)]);
      load[at(e)] += 0.5 * std::erfc(-distance(t, e) * kInvSqrt2);
    }
  }
  std::vector<double> importance_grads(at(experts)), load_grads(at(experts));
  const double value =
      coefficient / 2 * (squared_cv(importance, importance_grads) + squared_cv(load, load_grads));
  if (grad_logits.data == nullptr) return value;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const Real* z = logits.row(t);
    Real* grad = grad_logits.row(t);
    detail::make_scores(Score::softmax, Real(1), z, experts, p.data());
    for (std::int64_t e = 0; e < experts; ++e)
      p_grads[at(e)] = static_cast<Real>(coefficient / 2 * importance_grads[at(e)]);
    detail::add_score_gradient(Score::softmax, Real(1), z, p.data(), p_grads.data(), experts, grad);
    thresholds.look(noisy.row(t));
    for (std::int64_t e = 0; e < experts; ++e) {
      const double u = distance(t, e);
      const double density = kInvSqrt2Pi * std::exp(-u * u / 2) / deviation;
      const Real through = static_cast<Real>(coefficient / 2 * load_grads[at(e)] * density);
      grad[e] += through;
      grad[thresholds.holder(e)] -= through;
    }
  }
  return value;
}

double compat_variance_loss(double alpha, std::span<const std::int64_t> counts) {
  check_coefficient(alpha, "compat-variance");
  double total = 0;
  for (const std::int64_t count : counts) total += static_cast<double>(count);
  if (total <= 0) return 0;
  double sum = 0;
  for (const std::int64_t count : counts) {
    const double off = static_cast<double>(count) / total - 1 / static_cast<double>(counts.size());
    sum += off * off;
  }
  return alpha * sum;
}

template double balance_loss(const BalanceLoss&, View2<const float>, std::span<const std::int64_t>,
                             View2<float>);
template double balance_loss(const BalanceLoss&, View2<const double>, std::span<const std::int64_t>,
                             View2<double>);
template double z_loss(double, View2<const float>, View2<float>);
template double z_loss(double, View2<const double>, View2<double>);
template double importance_load_loss(double, std::int32_t, double, View2<const float>, View2<const float>,
                                     View2<float>);
template double importance_load_loss(double, std::int32_t, double, View2<const double>, View2<const double>,
                                     View2<double>);

}  // namespace shunt

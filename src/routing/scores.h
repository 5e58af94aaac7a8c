#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/view.h>
#include <shunt/routing/gate.h>

namespace shunt::detail {

/// Of the normal distribution and its density.
inline constexpr double kInvSqrt2 = 0.70710678118654752440;
inline constexpr double kInvSqrt2Pi = 0.39894228040143267794;

[[nodiscard]] inline std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, fmt::format(text, std::forward<Args>(args)...));
}

/// Errors: Errc::invalid_argument naming `origin`, token and expert where a value is not finite.
template <class Real>
void check_finite(View2<const Real> logits, std::string_view origin) {
  if (logits.rows < 0 || logits.cols < 1 ||
      (logits.rows > 0 && (logits.data == nullptr || logits.row_stride < logits.cols))) {
    refuse(
        "{}: logits of {} tokens and {} experts with stride {}; needed are memory, at least 1 expert and a "
        "stride of at least as many elements",
        origin, logits.rows, logits.cols, logits.row_stride);
  }
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    const Real* z = logits.row(t);
    // The sum of 0 * z is 0 exactly where all are finite; only then is it worth knowing which one is not.
    Real zero = 0;
    for (std::int64_t e = 0; e < logits.cols; ++e) zero += Real(0) * z[e];
    if (zero == Real(0)) continue;
    for (std::int64_t e = 0; e < logits.cols; ++e) {
      if (!std::isfinite(z[e]))
        refuse("{}: the logit of token {}, expert {} is {}; logits must be finite", origin, t, e, z[e]);
    }
  }
}

/// Errors: Errc::invalid_argument unless `grad` has no data or the shape of `logits`.
template <class Real>
void check_grad(View2<const Real> logits, View2<Real> grad, std::string_view origin) {
  if (grad.data != nullptr && (grad.rows != logits.rows || grad.cols != logits.cols))
    refuse("{}: the gradient is [{}, {}]; it must have the shape of the logits, [{}, {}]", origin, grad.rows,
           grad.cols, logits.rows, logits.cols);
}

/// The k largest of n values, largest first, equal ones by index. Cost: n comparisons and few moves where k is small.
template <class Real>
void select_largest(const Real* values, std::int64_t n, std::int64_t k, std::int32_t* ids) {
  std::int64_t held = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const Real value = values[i];
    if (held == k && !(value > values[ids[k - 1]])) continue;
    std::int64_t place = held < k ? held++ : k - 1;
    for (; place > 0 && value > values[ids[place - 1]]; --place) ids[place] = ids[place - 1];
    ids[place] = static_cast<std::int32_t>(i);
  }
}

template <class Real>
[[nodiscard]] Real sigmoid(Real z) {
  // Either branch takes exp of a number that is not positive.
  if (z >= 0) return 1 / (1 + std::exp(-z));
  const Real e = std::exp(z);
  return e / (1 + e);
}

template <class Real>
[[nodiscard]] Real softplus(Real z) {
  return std::max(z, Real(0)) + std::log1p(std::exp(-std::abs(z)));
}

/// (sum of s^p)^(1/p) over the first k of `ids`; s >= 0. Of s over the largest, so that no power vanishes.
template <class Real>
[[nodiscard]] Real p_norm(const Real* scores, const std::int32_t* ids, std::int64_t k, Real p) {
  Real largest = 0;
  for (std::int64_t i = 0; i < k; ++i) largest = std::max(largest, scores[ids[i]]);
  if (!(largest > 0)) return 0;
  Real sum = 0;
  for (std::int64_t i = 0; i < k; ++i) sum += std::pow(scores[ids[i]] / largest, p);
  return largest * std::pow(sum, 1 / p);
}

/// Writes the scores of one token. `z` and `scores` may be the same.
template <class Real>
void make_scores(Score score, Real temperature, const Real* z, std::int64_t n, Real* scores) {
  switch (score) {
    case Score::logit:
      for (std::int64_t e = 0; e < n; ++e) scores[e] = z[e] / temperature;
      break;
    case Score::softmax: {
      const Real largest = *std::max_element(z, z + n);
      Real sum = 0;
      for (std::int64_t e = 0; e < n; ++e) sum += scores[e] = std::exp((z[e] - largest) / temperature);
      for (std::int64_t e = 0; e < n; ++e) scores[e] /= sum;
      break;
    }
    case Score::sigmoid:
      for (std::int64_t e = 0; e < n; ++e) scores[e] = sigmoid(z[e] / temperature);
      break;
    case Score::sqrt_softplus:
      for (std::int64_t e = 0; e < n; ++e) scores[e] = std::sqrt(softplus(z[e] / temperature));
      break;
  }
}

/// Adds to `grad_z` what `grad_scores` says of one token, whose scores are `scores`.
template <class Real>
void add_score_gradient(Score score, Real temperature, const Real* z, const Real* scores,
                        const Real* grad_scores, std::int64_t n, Real* grad_z) {
  switch (score) {
    case Score::logit:
      for (std::int64_t e = 0; e < n; ++e) grad_z[e] += grad_scores[e] / temperature;
      break;
    case Score::softmax: {
      Real dot = 0;
      for (std::int64_t e = 0; e < n; ++e) dot += grad_scores[e] * scores[e];
      for (std::int64_t e = 0; e < n; ++e) grad_z[e] += scores[e] * (grad_scores[e] - dot) / temperature;
      break;
    }
    case Score::sigmoid:
      for (std::int64_t e = 0; e < n; ++e)
        grad_z[e] += grad_scores[e] * scores[e] * (1 - scores[e]) / temperature;
      break;
    case Score::sqrt_softplus:
      for (std::int64_t e = 0; e < n; ++e) {
        if (scores[e] > 0)
          grad_z[e] += grad_scores[e] * sigmoid(z[e] / temperature) / (2 * scores[e] * temperature);
      }
      break;
  }
}

}  // namespace shunt::detail

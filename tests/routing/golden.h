#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/core/random.h>
#include <shunt/routing/gate.h>

namespace shunt::test {

/// Logits [T, E] with their memory.
template <class Real>
struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<Real> data;

  Matrix(std::int64_t rows_in, std::int64_t cols_in)
      : rows(rows_in), cols(cols_in), data(static_cast<std::size_t>(rows_in * cols_in)) {}
  Matrix(std::int64_t cols_in, std::vector<Real> data_in)
      : rows(static_cast<std::int64_t>(data_in.size()) / cols_in), cols(cols_in), data(std::move(data_in)) {}
  [[nodiscard]] View2<const Real> view() const { return {data.data(), rows, cols}; }
  [[nodiscard]] View2<Real> view() { return {data.data(), rows, cols}; }
  [[nodiscard]] Real* row(std::int64_t r) { return data.data() + r * cols; }
};

/// The six tokens of the golden numbers: T 6, E 4, K 2.
template <class Real>
Matrix<Real> golden_logits() {
  const std::vector<double> values = {1,  2,   .5, -1, 0,  3,   1,   2,   2, 2.5, 0,  1,
                                      -1, 1.5, .5, 0,  .2, 2.2, 1.2, -.8, 3, 0,   -1, 1};
  return {4, std::vector<Real>(values.begin(), values.end())};
}

/// Seeded values in about [-2, 2), no two of a row closer than the step of finite differences can bridge.
inline Matrix<double> random_logits(std::int64_t tokens, std::int64_t experts, std::uint64_t seed) {
  Matrix<double> logits(tokens, experts);
  for (std::int64_t t = 0; t < tokens; ++t) {
    Random random(seed, static_cast<std::uint64_t>(t));
    for (std::int64_t e = 0; e < experts; ++e) logits.row(t)[e] = 4 * random.uniform() - 2;
  }
  return logits;
}

/// `gradient` against central differences of `value` at every element of `x`.
inline void expect_gradient(Matrix<double>& x, const Matrix<double>& gradient,
                            const std::function<double()>& value, double tolerance = 1e-7) {
  constexpr double kStep = 1e-5;
  for (std::size_t i = 0; i < x.data.size(); ++i) {
    const double at = x.data[i];
    x.data[i] = at + kStep;
    const double above = value();
    x.data[i] = at - kStep;
    const double below = value();
    x.data[i] = at;
    EXPECT_NEAR(gradient.data[i], (above - below) / (2 * kStep), tolerance)
        << "token " << static_cast<std::int64_t>(i) / x.cols << ", expert "
        << static_cast<std::int64_t>(i) % x.cols;
  }
}

template <class Real>
GateOutput<Real> route(const GateConfig& gate, const Matrix<Real>& logits) {
  return gate_forward<Real>(gate, {.logits = logits.view()});
}

inline double largest_of(const std::vector<double>& values) {
  double largest = 0;
  for (const double value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

}  // namespace shunt::test

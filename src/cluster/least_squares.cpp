#include "least_squares.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace shunt::detail {
namespace {

constexpr int kMaxIterations = 200;
constexpr double kStep = 1e-5;       // of the difference quotient, in log p
constexpr double kConverged = 1e-9;  // relative fall of the cost
constexpr double kMaxMove = 2.0;     // in log p, in one iteration

/// Solves the symmetric system a x = b in place by Cholesky. False where it is not positive definite.
bool solve(std::vector<double>& a, std::vector<double>& b, std::size_t n) {
  for (std::size_t j = 0; j < n; ++j) {
    for (std::size_t k = 0; k < j; ++k)
      for (std::size_t i = j; i < n; ++i) a[i * n + j] -= a[i * n + k] * a[j * n + k];
    if (!(a[j * n + j] > 0)) return false;
    const double root = std::sqrt(a[j * n + j]);
    for (std::size_t i = j; i < n; ++i) a[i * n + j] /= root;
  }
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t k = 0; k < i; ++k) b[i] -= a[i * n + k] * b[k];
    b[i] /= a[i * n + i];
  }
  for (std::size_t i = n; i-- > 0;) {
    for (std::size_t k = i + 1; k < n; ++k) b[i] -= a[k * n + i] * b[k];
    b[i] /= a[i * n + i];
  }
  return true;
}

}  // namespace

std::vector<double> fit_least_squares(
    const LeastSquaresProblem& problem, std::span<const double> measured, std::vector<double> start,
    const std::function<void(std::span<const double>, std::span<double>)>& predict) {
  const std::size_t n = problem.prior.size();
  const std::size_t rows = measured.size();
  std::vector<double> x(n);
  std::vector<double> prior(n);
  std::vector<double> low(n);
  std::vector<double> high(n);
  for (std::size_t j = 0; j < n; ++j) {
    low[j] = std::log(problem.low[j]);
    high[j] = std::log(problem.high[j]);
    prior[j] = std::log(problem.prior[j]);
    x[j] = std::clamp(std::log(start[j]), low[j], high[j]);
  }
  std::vector<double> parameters(n);
  std::vector<double> predicted(rows);
  const auto residuals = [&](const std::vector<double>& at, std::vector<double>& out) {
    for (std::size_t j = 0; j < n; ++j) parameters[j] = std::exp(at[j]);
    predict(parameters, predicted);
    for (std::size_t i = 0; i < rows; ++i) out[i] = std::log(predicted[i] / measured[i]);
  };
  const auto cost_of = [&](const std::vector<double>& at, const std::vector<double>& r) {
    double cost = 0;
    const double s = problem.robust;
    for (std::size_t i = 0; i < rows; ++i) cost += 2 * s * s * (std::sqrt(1 + (r[i] / s) * (r[i] / s)) - 1);
    for (std::size_t j = 0; j < n; ++j) {
      const double pull = problem.prior_weight * (at[j] - prior[j]);
      cost += pull * pull;
    }
    return cost;
  };

  std::vector<double> r(rows);
  std::vector<double> moved(rows);
  std::vector<double> jacobian(rows * n);
  residuals(x, r);
  double cost = cost_of(x, r);
  double damping = 1e-3;
  for (int iteration = 0; iteration < kMaxIterations; ++iteration) {
    for (std::size_t j = 0; j < n; ++j) {
      std::vector<double> at = x;
      const double step = x[j] + kStep > high[j] ? -kStep : kStep;
      at[j] += step;
      residuals(at, moved);
      for (std::size_t i = 0; i < rows; ++i) jacobian[i * n + j] = (moved[i] - r[i]) / step;
    }
    std::vector<double> normal(n * n, 0);
    std::vector<double> gradient(n, 0);
    for (std::size_t i = 0; i < rows; ++i) {
      const double z = r[i] / problem.robust;
      const double weight = 1 / std::sqrt(1 + z * z);
      const double* row = &jacobian[i * n];
      for (std::size_t j = 0; j < n; ++j) {
        gradient[j] += weight * row[j] * r[i];
        for (std::size_t k = 0; k <= j; ++k) normal[j * n + k] += weight * row[j] * row[k];
      }
    }
    const double w2 = problem.prior_weight * problem.prior_weight;
    for (std::size_t j = 0; j < n; ++j) {
      gradient[j] += w2 * (x[j] - prior[j]);
      normal[j * n + j] += w2;
    }
    // A parameter at its bound that wants to go on outwards stays out of this step.
    std::vector<bool> frozen(n);
    for (std::size_t j = 0; j < n; ++j)
      frozen[j] = (x[j] <= low[j] && gradient[j] > 0) || (x[j] >= high[j] && gradient[j] < 0);

    bool improved = false;
    double fall = 0;
    for (int attempt = 0; attempt < 12 && !improved; ++attempt) {
      std::vector<double> a = normal;
      std::vector<double> step(n);
      for (std::size_t j = 0; j < n; ++j) {
        step[j] = frozen[j] ? 0 : -gradient[j];
        for (std::size_t k = 0; k < j; ++k)
          if (frozen[j] || frozen[k]) a[j * n + k] = 0;
        a[j * n + j] = frozen[j] ? 1 : a[j * n + j] * (1 + damping) + 1e-12;
      }
      if (solve(a, step, n)) {
        std::vector<double> at = x;
        for (std::size_t j = 0; j < n; ++j)
          at[j] = std::clamp(x[j] + std::clamp(step[j], -kMaxMove, kMaxMove), low[j], high[j]);
        residuals(at, moved);
        const double next = cost_of(at, moved);
        if (next < cost) {
          improved = true;
          fall = cost - next;
          cost = next;
          x = at;
          r.swap(moved);
          damping = std::max(damping * 0.3, 1e-9);
        }
      }
      if (!improved) damping *= 4;
    }
    if (!improved || fall < kConverged * cost) break;
  }
  std::vector<double> result(n);
  for (std::size_t j = 0; j < n; ++j) result[j] = std::exp(x[j]);
  return result;
}

}  // namespace shunt::detail

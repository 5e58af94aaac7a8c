#pragma once

#include <functional>
#include <span>
#include <vector>

namespace shunt::detail {

/// What to fit: positive parameters p with bounds, so that predictions come near to what was measured.
struct LeastSquaresProblem {
  std::vector<double> prior;  ///< Where parameters stay that the data says nothing about; the first start
  std::vector<double> low;    ///< > 0
  std::vector<double> high;
  double prior_weight =
      0.1;               ///< Pull to the prior: as heavy as this^2 measurements that are off by a factor e
  double robust = 0.05;  ///< Errors well beyond this (as logarithm) count in proportion, not squared
};

/// Minimises sum of rho(log(predicted / measured)) + sum of (prior_weight log(p / prior))^2 over p in [low, high]
/// by Levenberg-Marquardt in log p, where rho is the soft absolute value 2 s^2 (sqrt(1 + (r / s)^2) - 1).
/// `predict` fills predictions (> 0) for parameters. The same input gives the same bits.
[[nodiscard]] std::vector<double> fit_least_squares(
    const LeastSquaresProblem& problem, std::span<const double> measured, std::vector<double> start,
    const std::function<void(std::span<const double> parameters, std::span<double> predicted)>& predict);

}  // namespace shunt::detail

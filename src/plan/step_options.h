#pragma once

#include <cstdint>
#include <string>

#include <shunt/core/error.h>
#include <shunt/plan/step_time.h>

namespace shunt::plan {

namespace detail {

[[nodiscard]] inline double real(std::int64_t value) {
  return static_cast<double>(value);
}

[[noreturn]] inline void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

}  // namespace detail

/// Refuses what step_time() refuses before it prices anything. The layout of `options` is resolved.
/// Errors: Errc::invalid_argument as step_time().
void check_step(const ModelSpec& model, const Machine& machine, const StepTimeOptions& options);

/// Load of the busiest rank over the mean, from whatever `options` say about loads; 1 without experts.
/// Errors: Errc::invalid_argument where all loads are 0.
[[nodiscard]] double used_imbalance(const ModelSpec& model, const StepTimeOptions& options);

}  // namespace shunt::plan

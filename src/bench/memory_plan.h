#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/bench/method.h>

namespace shunt::bench {

/// Which methods of a point run, decided from what all ranks know, so that they agree.
struct MethodPlan {
  std::vector<MethodSpec> specs;
  std::vector<std::string> skipped;  ///< Per spec: why it does not run; empty where it does
  SharedSizes shared;                ///< For those that run
};

/// Takes the methods in order as long as their buffers, on all ranks together, fit `available_bytes` (-1: not
/// known). A method that would move more bytes than `max_moved_bytes` in one iteration is left out too (-1:
/// no bound). Errors: Errc::out_of_memory where some method was left out for want of memory and none that
/// does a whole step is left;
///         says what the smallest needs and which options reduce it.
[[nodiscard]] MethodPlan plan_methods(const std::vector<MethodSpec>& specs, const Workload& workload,
                                      const MethodSettings& settings, std::int64_t available_bytes,
                                      std::int64_t max_moved_bytes);

}  // namespace shunt::bench

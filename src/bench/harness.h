#pragma once

#include <functional>
#include <string>

#include <shunt/bench/placement.h>
#include <shunt/bench/results.h>

#include "memory_plan.h"

namespace shunt::bench {

/// How one point is measured.
struct HarnessOptions {
  std::int64_t warmup = 2;
  std::int64_t iterations = 0;  ///< 0: as many as fit block_ms
  double block_ms = 4;
  std::int64_t rounds = 10;
  double max_seconds = 10;                 ///< Of this point, from `start`
  Clock::time_point start = Clock::now();  ///< One clock for all processes of a machine
  bool inner_phases = true;
  PlacementThresholds thresholds;
  std::function<void(double)> progress;  ///< Share done; called on rank 0 only
};

/// Measures one point on one rank. Collective: every rank calls it with equal arguments and decides alike,
/// because all decisions come from gathered data. The result is whole on rank 0 only.
[[nodiscard]] PointResult measure_point(Transport& transport, const Workload& workload,
                                        const MethodPlan& plan, const MethodSettings& settings,
                                        const HarnessOptions& options);

}  // namespace shunt::bench

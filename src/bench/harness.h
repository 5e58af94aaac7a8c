#pragma once

#include <functional>
#include <string>

#include <shunt/bench/placement.h>
#include <shunt/bench/results.h>

#include "agreement.h"

namespace shunt::bench {

/// How one point is measured. What this says of time and thresholds counts on rank 0.
struct HarnessOptions {
  std::int64_t warmup = 2;
  std::int64_t iterations = 0;  ///< 0: as many as fit block_ms
  double block_ms = 4;
  std::int64_t rounds = 10;
  double max_seconds = 10;  ///< Of this point, from `start`
  Clock::time_point start = Clock::now();
  bool inner_phases = true;
  /// Methods measure by the clocks of GPUs: stamps of ranks are not compared, and no round trip between cores is probed.
  bool on_device = false;
  PlacementThresholds thresholds;
  Refusal refusal;                       ///< Why this process cannot measure the point, though others may
  std::function<void(double)> progress;  ///< Share done; called on rank 0 only
};

/// Measures one point on one rank. Collective: ranks agree at the start on what their processes may have decided
/// differently, and later decide alike, because all decisions come from gathered data. `workload` may be null
/// where options.refusal says why.
/// Result: whole on rank 0 only; names and states of the methods are right everywhere.
/// Errors: those of agree_on_point(), on every rank.
[[nodiscard]] PointResult measure_point(Transport& transport, const Workload* workload,
                                        const std::vector<MethodSpec>& specs, const MethodSettings& settings,
                                        const HarnessOptions& options);

}  // namespace shunt::bench

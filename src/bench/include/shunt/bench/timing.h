#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <shunt/bench/method.h>

namespace shunt::bench {

/// What one rank notes in one iteration, nanoseconds of the steady clock (one clock for all processes of a
/// machine).
struct RankStamps {
  std::int64_t dispatch_begin = 0, dispatch_end = 0;
  std::int64_t touch_begin = 0, touch_end = 0;
  std::int64_t combine_begin = 0, combine_end = 0;
  InnerTimes inner{};
};

/// One iteration over all ranks, microseconds.
struct StepSample {
  double dispatch_us = 0, touch_us = 0, combine_us = 0;
  double total_us = 0;                       ///< Sum of the three
  std::array<double, kNumInner> inner_us{};  ///< Slowest rank; -1 where no rank has it
};

/// Makespans: the last rank's end less the first rank's begin, phase by phase.
[[nodiscard]] StepSample makespan(std::span<const RankStamps> ranks);

}  // namespace shunt::bench

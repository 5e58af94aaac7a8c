#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <shunt/bench/method.h>

namespace shunt::bench {

/// How the stamps of different ranks relate.
enum class StampClock : std::uint8_t {
  common,    ///< One kernel's steady clock: they may be subtracted from each other.
  per_rank,  ///< Clocks of several machines: only those of one rank may.
};
[[nodiscard]] constexpr const char* clock_name(StampClock clock) noexcept {
  return clock == StampClock::common ? "common" : "per_rank";
}

/// What one rank notes in one iteration, nanoseconds of its steady clock.
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

/// Phase by phase the makespan, the last rank's end less the first rank's begin. Without a common clock the longest
/// of the ranks' own times; every phase begins at the end of a barrier, so this is less than the makespan by at
/// most the time between the first and the last rank's leaving it.
[[nodiscard]] StepSample makespan(std::span<const RankStamps> ranks, StampClock clock = StampClock::common);

}  // namespace shunt::bench

#pragma once

#include <chrono>
#include <vector>

#include <shunt/transport/transport.h>

namespace shunt::bench {

/// Round trip of one cache line between the cores of ranks 0 and 1.
class RoundTripProbe {
 public:
  /// Collective.
  RoundTripProbe(Transport& transport, std::chrono::milliseconds deadline);
  /// Ranks 0 and 1 take part, others return at once. Nanoseconds on rank 0: the fastest of 12 batches of 20
  /// round trips; -1 on other ranks, in a world of one, and where these two cannot load each other's memory.
  [[nodiscard]] double measure();
  /// Collective. `count` round trips on rank 0, `pause` apart; empty elsewhere, and where there are none.
  [[nodiscard]] std::vector<double> survey(int count, std::chrono::microseconds pause);

 private:
  void wait_for(std::uint64_t value, std::int32_t peer);
  Transport& transport_;
  std::chrono::milliseconds deadline_;
  SymmetricBuffer words_;
  std::uint64_t last_ = 0;
};

/// Starts two ranks and measures `count` round trips, `pause` apart. Empty where only one core is there or
/// they cannot start.
[[nodiscard]] std::vector<double> survey_round_trips(int count, std::chrono::microseconds pause);

}  // namespace shunt::bench

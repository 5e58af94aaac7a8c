#pragma once

#include <map>
#include <string>
#include <vector>

#include <shunt/bench/placement.h>
#include <shunt/bench/results.h>
#include <shunt/bench/timing.h>

namespace shunt::bench {

/// Blocks of all methods of a point, by placement class.
class RoundLog {
 public:
  /// `unprobed`: the class of blocks without a round trip, as in placement_label().
  RoundLog(std::size_t num_methods, const PlacementThresholds& thresholds, const char* unprobed)
      : methods_(num_methods), thresholds_(thresholds), unprobed_(unprobed) {}

  /// Drops the block where its two probes fall into different classes.
  void add(std::size_t method, double before_ns, double after_ns, const std::vector<StepSample>& samples);

  /// Whether some class has at least `required` blocks of each of `methods`.
  [[nodiscard]] bool complete(const std::vector<std::size_t>& methods, std::int64_t required) const;

  /// Summaries of one method, class by class; `inner` alone or the phases alone.
  [[nodiscard]] std::vector<PhaseResult> phases(std::size_t method, const MethodResult& shape, bool outer,
                                                bool inner) const;

  [[nodiscard]] std::int64_t kept() const noexcept { return kept_; }
  [[nodiscard]] std::int64_t dropped() const noexcept { return dropped_; }
  [[nodiscard]] const std::vector<double>& round_trips_ns() const noexcept { return round_trips_ns_; }

 private:
  struct ClassLog {
    std::int64_t rounds = 0;
    std::vector<StepSample> samples;
  };
  std::vector<std::map<std::string, ClassLog>> methods_;
  PlacementThresholds thresholds_;
  const char* unprobed_;
  std::vector<double> round_trips_ns_;
  std::int64_t kept_ = 0;
  std::int64_t dropped_ = 0;
};

}  // namespace shunt::bench

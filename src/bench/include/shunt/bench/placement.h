#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace shunt::bench {

/// Round-trip times between the cores of ranks 0 and 1 that separate the placement classes.
struct PlacementThresholds {
  double near_ns = 65;      ///< Below: "near", two threads of one core
  double same_l3_ns = 190;  ///< Below: "same_l3"; from here on "far"
};

/// Thresholds before anything was measured. AMD: a core complex answers in about 100 ns, another one in about
/// 400. Intel and others: one mesh, whose round trip is 100 to 300 ns.
[[nodiscard]] PlacementThresholds vendor_thresholds(std::string_view cpu_vendor);

/// Moves each threshold into the widest gap of the sorted round trips (ratio of neighbours at least 1.6) that
/// lies within a factor of 2 of it: the geometric mean of the gap's ends. Without such a gap it stays.
[[nodiscard]] PlacementThresholds refine_thresholds(const PlacementThresholds& prior,
                                                    std::span<const double> round_trips_ns);

/// "near", "same_l3" or "far"; `unprobed` for a round trip below 0: "single" (one rank has no peer) or "network"
/// (ranks 0 and 1 do not reach each other's memory).
[[nodiscard]] const char* placement_label(double round_trip_ns, const PlacementThresholds& thresholds,
                                          const char* unprobed = "single");

/// Label of a block, or "" where its two probes disagree and it is to be dropped.
[[nodiscard]] std::string block_label(double before_ns, double after_ns,
                                      const PlacementThresholds& thresholds, const char* unprobed = "single");

}  // namespace shunt::bench

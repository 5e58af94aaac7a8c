#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/bench/routing_bench.h>

namespace shunt::bench {

/// `shunt sweep pack|capacity`: a grid of points, a JSON line for each implementation at each point.
struct SweepOptions {
  /// What all points share; its work says which sweep it is (routing: pack).
  RoutingPoint point;
  std::vector<std::int64_t> tokens;  ///< Outermost axis
  std::vector<std::int64_t> hidden;
  std::vector<std::int32_t> experts;
  std::vector<std::int32_t> top_k;       ///< Gates of one expert (top1) take 1 alone
  std::vector<double> capacity_factors;  ///< Innermost axis; capacity only
  std::string output;                    ///< JSON Lines, appended to
  bool dry_run = false;                  ///< Say what would be measured
};

struct SweepReport {
  std::int64_t measured = 0;
  std::int64_t skipped = 0;  ///< Were in the file already
  bool failed = false;  ///< Some result was wrong; its line has status failed and is measured again next time
};

/// The grid, in the order in which it is measured.
/// Errors: Errc::invalid_argument on an axis without values, and as check_point at any point.
[[nodiscard]] std::vector<RoutingPoint> sweep_points(const SweepOptions& options);

/// What tells a point from others in a file, as the value of its key "point".
[[nodiscard]] std::string point_key(const RoutingPoint& point, const std::string& impl);

/// Measures the points that the file does not hold with status ok, and appends each when it is measured, so that a sweep
/// that was ended goes on where it was. A last line that was cut off is taken away first. Points that do not fit the memory
/// become lines with status skipped and the reason, and are tried again next time.
/// Errors: as sweep_points, before anything is measured, also where the file has a line that no sweep wrote; Errc::io with
/// path and reason.
[[nodiscard]] SweepReport run_sweep(const SweepOptions& options, const std::vector<std::string>& command,
                                    const BenchOutput& output);

}  // namespace shunt::bench

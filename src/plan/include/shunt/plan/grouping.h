#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/cluster/placement.h>
#include <shunt/plan/report.h>

namespace shunt::plan {

/// linear, round_robin, hash, locality, latency_balanced.
[[nodiscard]] const std::vector<std::string>& grouping_strategies();

struct GroupingOptions {
  std::vector<std::string> strategies;  ///< Empty: all
  PlacementShape shape;                 ///< `places` with redundant experts, which only latency_balanced uses
  double expert_bytes = 0;              ///< All layers that move; 0: no bytes are reported
};

/// Load of each expert from a file: numbers with commas, tabs or spaces between them; several lines (layers, or
/// windows of time) are summed. Errors: Errc::io with file:line for what is no number >= 0, or another count.
[[nodiscard]] std::vector<float> read_loads(const std::string& path);

/// Load of expert i proportional to (i + 1)^-alpha, in an order shuffled by `seed`.
[[nodiscard]] std::vector<float> power_law_loads(std::int64_t experts, double alpha, std::uint64_t seed);

/// Where every strategy puts the experts, and how even it makes ranks and nodes.
/// Errors: Errc::invalid_argument for unknown strategies (with the nearest), as the placements, and where a strategy
///         that was asked for cannot serve this shape; among all, it is left out with a note.
[[nodiscard]] Report report_grouping(const std::vector<float>& loads, const GroupingOptions& options);

}  // namespace shunt::plan

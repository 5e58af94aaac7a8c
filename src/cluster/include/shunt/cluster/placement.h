#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shunt {

/// Which expert lies in each place of a layer. Rank r has the places [offsets[r], offsets[r + 1]).
struct Placement {
  std::vector<std::int32_t> experts;  ///< One for each place, rank by rank; an expert may be in several
  std::vector<std::int64_t> offsets;  ///< Ranks + 1

  [[nodiscard]] std::int64_t ranks() const noexcept { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

/// Sizes that a placement must fit.
struct PlacementShape {
  std::int64_t places = 0;  ///< Of all ranks; at least as many as experts
  std::int64_t groups = 1;  ///< Groups of consecutive experts that a token's experts are drawn from
  std::int64_t nodes = 1;
  std::int64_t ranks = 1;
};

/// Experts in order, as many on each rank. Errors: Errc::invalid_argument where ranks do not divide them.
[[nodiscard]] Placement place_linear(std::int64_t experts, std::int64_t ranks);
/// Expert e on rank e mod ranks. Errors: as place_linear.
[[nodiscard]] Placement place_round_robin(std::int64_t experts, std::int64_t ranks);
/// Expert e on the rank that a hash of e names, which evens out only by chance: ranks may have none.
[[nodiscard]] Placement place_hashed(std::int64_t experts, std::int64_t ranks);
/// Groups of experts go to nodes so that nodes carry equal load; inside a node experts lie in order. No copies.
/// Errors: Errc::invalid_argument where nodes do not divide groups and ranks, or ranks the experts.
[[nodiscard]] Placement place_by_group(const std::vector<float>& loads, const PlacementShape& shape);
/// Copies of the most loaded experts, then equal loads on ranks with as many places on each; in whole groups by node
/// where nodes divide groups, else over all ranks at once.
/// Result:  the placement of deepseek-ai/EPLB at d52c72d for the same numbers (ties go to the lower index).
/// Errors:  Errc::invalid_argument where the numbers do not divide as EPLB asserts.
[[nodiscard]] Placement place_balanced(const std::vector<float>& loads, const PlacementShape& shape);

/// Load of each rank where the copies of an expert share its load equally.
[[nodiscard]] std::vector<double> rank_loads(const Placement& placement, const std::vector<float>& loads);

/// Places of `to` whose expert the rank does not have in `from`: what must be copied to it.
[[nodiscard]] std::int64_t moved_places(const Placement& from, const Placement& to);

}  // namespace shunt

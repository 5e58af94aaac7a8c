#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <shunt/cluster/machine.h>
#include <shunt/cluster/placement.h>
#include <shunt/plan/report.h>
#include <shunt/routing/routing.h>

namespace shunt::plan {

/// The way from one rank's memory to another's, one rank on each GPU, in order.
struct RankPath {
  Tier tier = Tier::hbm;
  std::string by;                  ///< self, nvlink, nvswitch, xgmi, pcie, rail, nvlink + rail, spine
  std::int64_t hops = 0;           ///< Links crossed
  double gb_per_s = 0;             ///< What one pair gets while nobody else sends
  double latency_us = 0;           ///< Of one message
  std::vector<std::string> steps;  ///< From end to end, in words
};

/// Where a rank lies. Ranks fill a host before the next one; a rail joins the cards with one index of all hosts of a pod.
struct RankPlace {
  std::int64_t host = 0;
  std::int64_t domain = 0;  ///< Scale-up domain
  std::int64_t pod = 0;
  std::int64_t rail = 0;
};
[[nodiscard]] RankPlace place_of_rank(const Machine& machine, std::int64_t rank);

/// Path with the fewest hops and, among those, the highest rate. Ranks on other rails of the pod are reached over the
/// scale-up fabric and the own rail where there is one, else through the spine.
/// Errors: Errc::invalid_argument for ranks outside the machine.
[[nodiscard]] RankPath path_between(const Machine& machine, std::int64_t from, std::int64_t to);

struct TopologyOptions {
  std::int64_t ranks = 0;     ///< Of the matrix, from 0; 0: all
  std::string show = "hops";  ///< hops, gb_per_s or tier
  std::int64_t from = -1;     ///< With `to`: this one path, step by step
  std::int64_t to = -1;
};

/// Tiers with their numbers of peers, and a matrix of ranks by ranks or one path.
/// Errors: Errc::invalid_argument for a matrix of more than 256 ranks, ranks outside the machine, and unknown `show`.
[[nodiscard]] Report report_topology(const Machine& machine, const TopologyOptions& options);

/// linear, round_robin, hash, locality, latency_balanced, affinity.
[[nodiscard]] const std::vector<std::string>& residence_strategies();

struct ResidenceOptions {
  std::vector<std::string> strategies;  ///< Empty: all
  PlacementShape shape;     ///< ranks of the machine; `places` with redundant experts, for latency_balanced
  double dispatch_row = 0;  ///< Bytes of a token on its way to an expert, and back
  double combine_row = 0;
  ExchangePath path = ExchangePath::automatic;  ///< automatic: rail_aligned over several domains, else flat
  double max_imbalance =
      1.1;  ///< Load of a rank over the mean that `affinity` may make, or that of latency_balanced
  double expert_bytes = 0;  ///< All layers, of one expert; 0: no bytes of moves
};

/// What a placement makes one layer's dispatch and combine send, for the tokens of all ranks together.
struct ResidenceScore {
  double local_rows = 0;       ///< Rows whose expert is on their own rank
  double near_bytes = 0;       ///< Over the scale-up tier (PCIe without), rows passed on included
  double network_bytes = 0;    ///< Over network cards
  double spine_bytes = 0;      ///< Of these, through the spine
  double ranks_per_token = 0;  ///< Distinct, the own one included
  double domains_per_token = 0;
  double load_max_over_mean = 0;  ///< Selections of the busiest rank
  double busiest_us =
      0;  ///< Most time that one rank's links need for its bytes, both directions of the exchange
};

/// Score of `placement` for the tokens of each rank (`tokens[r]` are those of rank r). A copy on the own rank is used
/// first, then one in the own domain, else the copies in turn.
/// Errors: Errc::invalid_argument where numbers of ranks or experts differ.
[[nodiscard]] ResidenceScore score_residence(const Machine& machine, std::span<const Routing> tokens,
                                             const Placement& placement, const ResidenceOptions& options);

/// Places experts that tokens choose together on the same domain and rank, and near the ranks whose tokens choose them,
/// as far as loads stay even: a greedy start, then swaps while they save rows (to other domains first, then to other
/// ranks inside). No copies. Deterministic; looks at 4096 tokens at most.
/// Result:  never more rows between domains than place_linear, as counted on those tokens, unless that breaks
///          max_imbalance.
/// Errors:  Errc::invalid_argument where ranks do not divide experts.
[[nodiscard]] Placement place_by_affinity(std::span<const Routing> tokens, std::int64_t ranks,
                                          std::int64_t domains, double max_imbalance);

/// Every strategy's score beside that of `linear`, the experts of each rank, and the pairs of experts that are chosen
/// together most often beyond chance.
/// Errors: as the functions above, and for unknown strategies with the nearest.
[[nodiscard]] Report report_residence(const Machine& machine, std::span<const Routing> tokens,
                                      const ResidenceOptions& options);

}  // namespace shunt::plan

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace shunt {

/// Where the tokens of one rank go in a dispatch: R ranks in N equal nodes, E experts dealt to ranks as evenly as
/// possible, K experts for each token.
struct RoutedShape {
  std::int32_t ranks = 1;       ///< R
  std::int32_t nodes = 1;       ///< N, divides R
  std::int64_t experts = 1;     ///< E
  std::int64_t topk = 1;        ///< K <= E
  std::int32_t node_limit = 0;  ///< Most nodes that a token may reach (group-limited routing); 0 is no limit
  bool dealt_in_turn = false;   ///< Each token takes experts E / K apart, not any: it reaches min(K, R) ranks
};

/// Expected places that hold at least one expert of a token, its own included.
struct Destinations {
  double ranks = 0;        ///< Distinct ranks, over all nodes
  double nodes = 0;        ///< Distinct nodes
  double other_ranks = 0;  ///< Distinct ranks of other nodes: rows that flat dispatch sends over the network
  double other_nodes = 0;  ///< Distinct other nodes: rows that hierarchical dispatch sends over the network
  double near_ranks = 0;   ///< Distinct other ranks of the own node
};

/// Expected destinations of a token under uniform routing, in closed form.
/// Errors: Errc::invalid_argument where N does not divide R, K is not in [1, E], or node_limit leaves fewer than
///         K experts.
/// Source: expectation of an indicator for each place, E[distinct] = G (1 - C(E - E/G, K) / C(E, K)) for G equal
///         places; with a limit of M nodes the same among the experts of M nodes drawn uniformly.
[[nodiscard]] Destinations expected_destinations(const RoutedShape& shape);

/// The same where the experts lie in `groups` equal groups in order and a token uses those of `top_groups` groups, drawn
/// uniformly, as models with group-limited routing do. Exact for nodes and ranks that hold whole groups or equal parts
/// of one.
/// Errors: Errc::invalid_argument as above, and where groups do not divide the experts, top_groups is not in [1, groups],
///         its groups hold fewer than K experts, or nodes or ranks neither divide the groups nor are multiples of them.
/// Source: expectation of an indicator, over the hypergeometric number of a place's groups among those drawn.
[[nodiscard]] Destinations group_limited_destinations(std::int32_t ranks, std::int32_t nodes,
                                                      std::int64_t experts, std::int64_t topk,
                                                      std::int64_t groups, std::int64_t top_groups);

/// The same counted from recorded ids [T, K] of the tokens of `source_rank` (-1 skips), mean over the tokens; experts are
/// dealt in order to ranks, ranks in order to nodes. All 0 without tokens.
/// Errors: Errc::invalid_argument where nodes do not divide the ranks, ids is no multiple of K, an id is not below E, or
///         the source is no rank.
[[nodiscard]] Destinations counted_destinations(std::span<const std::int32_t> ids, std::int64_t topk,
                                                std::int64_t experts, std::int32_t ranks, std::int32_t nodes,
                                                std::int32_t source_rank);

/// Bytes of one row of `hidden` elements: bfloat16 and half 2 h, float 4 h, int8 and fp8 h, fp8_block128
/// h + 4 ceil(h / 128), mxfp8 h + ceil(h / 32), nvfp4 h / 2 + h / 16, mxfp4 h / 2 + h / 32, none 0.
/// Errors: Errc::invalid_argument for a name that is none of these, with the nearest.
[[nodiscard]] double row_bytes(const std::string& payload, std::int64_t hidden);

/// Bytes of a low-latency dispatch of DeepEP as its test counts them: T K (h + 4 h / 128), and of its combine:
/// T K 2 h. Every selection is a row; nothing is de-duplicated.
[[nodiscard]] double low_latency_dispatch_bytes(std::int64_t tokens, std::int64_t topk, std::int64_t hidden);
[[nodiscard]] double low_latency_combine_bytes(std::int64_t tokens, std::int64_t topk, std::int64_t hidden);

/// Load of E experts under a power law, as a sampler of x^-alpha on [1, E] gives in its quantiles, the heaviest
/// first, scaled to mean 1. alpha = 0 is not uniform load but a uniform law of it; for equal loads use 1s.
/// Source: inverse of the distribution, x = ((E^(1-a) - 1) u + 1)^(1/(1-a)) at u = (i + 1/2) / E.
[[nodiscard]] std::vector<double> power_law_loads(std::int64_t experts, double alpha);

/// Load of the busiest of R ranks over the mean, where rank r owns the experts of an even partition in order.
[[nodiscard]] double rank_imbalance(std::span<const double> expert_loads, std::int32_t ranks);

}  // namespace shunt

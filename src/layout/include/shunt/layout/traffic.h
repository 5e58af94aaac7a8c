#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <shunt/layout/partition.h>

namespace shunt {

/// What one dispatch moves between ranks and nodes, counted from expert ids.
struct Traffic {
  std::int64_t selections = 0;        ///< (token, k) with an expert
  std::int64_t token_ranks = 0;       ///< Distinct (token, owner rank) pairs, own rank included
  std::int64_t other_selections = 0;  ///< Selections whose expert is on another node
  std::int64_t other_ranks = 0;  ///< Distinct (token, owner rank) pairs on other nodes: rows that flat moves
  std::int64_t other_nodes =
      0;  ///< Distinct (token, node) pairs of other nodes: rows that hierarchical moves
};

/// Adds what tokens of one source rank cause. ids [T, K] of experts (-1 skips), node_of [R] (empty: every rank
/// is a node of its own).
void count_traffic(Traffic& traffic, const std::int32_t* ids, std::int64_t tokens, std::int32_t top_k,
                   const ExpertPartition& experts, std::int32_t source_rank,
                   std::span<const std::int32_t> node_of);

/// Expected number of distinct groups that hold at least one of K distinct uniformly drawn experts of E, where
/// group g holds sizes[g] of them: sum over g of 1 - C(E - n_g, K) / C(E, K).
/// Source: expectation of an indicator per group; DeepEP V2 uses it for equal groups.
[[nodiscard]] double expected_distinct_groups(std::int64_t experts, std::int64_t top_k,
                                              std::span<const std::int64_t> sizes);
/// Variance of the same number, for a test against a sample.
[[nodiscard]] double variance_distinct_groups(std::int64_t experts, std::int64_t top_k,
                                              std::span<const std::int64_t> sizes);

}  // namespace shunt

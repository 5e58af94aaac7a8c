#pragma once

#include <cstdint>
#include <span>

#include <shunt/layout/partition.h>

namespace shunt {

/// How the rows of a rank's experts lie.
enum class RowLayout : std::uint8_t {
  padded,  ///< Expert e starts at row e * rows_per_expert; rows beyond its count are padding.
  packed,  ///< Experts follow each other; each starts at a multiple of the alignment.
};

/// Where each local expert's rows start and how many rows a rank needs. Plain numbers, no memory of its own.
struct SlotLayout {
  RowLayout layout = RowLayout::packed;
  std::int64_t alignment = 1;        ///< Rows; >= 1. Rounds rows_per_expert (padded) or every start (packed).
  std::int64_t rows_per_expert = 0;  ///< padded only: groups * max_tokens, rounded up to `alignment`.

  /// Writes the first row of each local expert to starts[0 .. L) and the end of the last expert's (aligned) block to
  /// starts[L], from counts [L].
  /// Result: starts[L] rows hold everything, padding included.
  SHUNT_HOST_DEVICE constexpr void starts(const std::int64_t* counts, std::int64_t num_local_experts,
                                          std::int64_t* starts_out) const noexcept {
    std::int64_t next = 0;
    for (std::int64_t e = 0; e < num_local_experts; ++e) {
      starts_out[e] = next;
      next += layout == RowLayout::padded ? rows_per_expert : round_up(counts[e], alignment);
    }
    starts_out[num_local_experts] = next;
  }
};

/// Sizes from which every row bound follows.
struct RowBoundInput {
  std::int64_t max_tokens = 0;     ///< M, per group
  std::int32_t num_groups = 1;     ///< G = R / dp_size
  std::int32_t top_k = 1;          ///< K
  std::int32_t local_experts = 1;  ///< L of the rank in question
};

/// Most rows that can arrive at a rank: a token names an expert once, so it brings at most min(K, L) rows.
[[nodiscard]] SHUNT_HOST_DEVICE constexpr std::int64_t max_arriving_rows(const RowBoundInput& in) noexcept {
  const std::int64_t per_token = in.top_k < in.local_experts ? in.top_k : in.local_experts;
  return in.num_groups * in.max_tokens * per_token;
}

/// Rows of workspace for `arriving` rows. packed: each expert's block may end in up to alignment - 1 rows of padding
/// (no more blocks than arriving rows have any). padded: local_experts * rows_per_expert, whatever arrives.
[[nodiscard]] SHUNT_HOST_DEVICE constexpr std::int64_t workspace_rows(const SlotLayout& slots,
                                                                      const RowBoundInput& in,
                                                                      std::int64_t arriving) noexcept {
  if (slots.layout == RowLayout::padded) return in.local_experts * slots.rows_per_expert;
  const std::int64_t blocks = arriving < in.local_experts ? arriving : in.local_experts;
  return arriving + blocks * (slots.alignment - 1);
}

/// Counts selections per rank: per_rank[r] += number of entries of ids [T, K] whose expert lives on r; ids < 0 skip.
/// Id is std::int32_t or std::int64_t. The token matrix of a step is one such row per source rank.
template <class Id>
SHUNT_HOST_DEVICE constexpr void count_per_rank(const Id* ids, std::int64_t num_ids,
                                                const ExpertPartition& partition,
                                                std::int64_t* per_rank) noexcept {
  for (std::int64_t i = 0; i < num_ids; ++i)
    if (ids[i] >= 0) ++per_rank[partition.owner(static_cast<std::int32_t>(ids[i]))];
}

/// Counts selections per expert: per_expert[e] += ...; ids < 0 skip.
template <class Id>
SHUNT_HOST_DEVICE constexpr void count_per_expert(const Id* ids, std::int64_t num_ids,
                                                  std::int64_t* per_expert) noexcept {
  for (std::int64_t i = 0; i < num_ids; ++i)
    if (ids[i] >= 0) ++per_expert[ids[i]];
}

/// Exclusive prefix sum of counts [n] into offsets [n + 1].
SHUNT_HOST_DEVICE constexpr void exclusive_scan(const std::int64_t* counts, std::int64_t n,
                                                std::int64_t* offsets) noexcept {
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    offsets[i] = sum;
    sum += counts[i];
  }
  offsets[n] = sum;
}

}  // namespace shunt

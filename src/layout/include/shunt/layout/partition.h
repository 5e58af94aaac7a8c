#pragma once

#include <cstdint>

#include <shunt/device/qualifiers.h>

namespace shunt {

/// Which rank owns which expert: blocks of consecutive experts, as even as possible. The first E % R ranks own one
/// expert more than the others; with E < R the last ranks own none.
struct ExpertPartition {
  std::int32_t num_experts = 1;  ///< E >= 1, over all ranks
  std::int32_t num_ranks = 1;    ///< R >= 1

  /// Experts of `rank`.
  [[nodiscard]] SHUNT_HOST_DEVICE constexpr std::int32_t count(std::int32_t rank) const noexcept {
    return num_experts / num_ranks + (rank < num_experts % num_ranks ? 1 : 0);
  }
  /// First expert of `rank`; E for a rank that owns none.
  [[nodiscard]] SHUNT_HOST_DEVICE constexpr std::int32_t first(std::int32_t rank) const noexcept {
    const std::int32_t extra = num_experts % num_ranks;
    return rank * (num_experts / num_ranks) + (rank < extra ? rank : extra);
  }
  /// Rank that owns `expert`, 0 <= expert < E.
  [[nodiscard]] SHUNT_HOST_DEVICE constexpr std::int32_t owner(std::int32_t expert) const noexcept {
    const std::int32_t base = num_experts / num_ranks;
    const std::int32_t extra = num_experts % num_ranks;
    const std::int32_t boundary = extra * (base + 1);
    return expert < boundary ? expert / (base + 1) : extra + (expert - boundary) / base;
  }
  /// Most experts any rank owns.
  [[nodiscard]] SHUNT_HOST_DEVICE constexpr std::int32_t max_count() const noexcept { return count(0); }
};

/// Tokens of a group of `dp_size` ranks that `member` sends: a consecutive share, as even as possible.
struct TokenShare {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};
[[nodiscard]] SHUNT_HOST_DEVICE constexpr TokenShare token_share(std::int64_t num_tokens,
                                                                 std::int32_t dp_size,
                                                                 std::int32_t member) noexcept {
  const std::int64_t base = num_tokens / dp_size;
  const std::int64_t extra = num_tokens % dp_size;
  const std::int64_t begin = member * base + (member < extra ? member : extra);
  return {begin, begin + base + (member < extra ? 1 : 0)};
}

/// Smallest multiple of `alignment` (>= 1) that is >= value (>= 0).
[[nodiscard]] SHUNT_HOST_DEVICE constexpr std::int64_t round_up(std::int64_t value,
                                                                std::int64_t alignment) noexcept {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace shunt

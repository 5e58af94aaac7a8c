#pragma once

#include <cstdint>

namespace shunt::detail {

// Bounds that no model reaches; with them every count of parameters fits into 63 bits.
inline constexpr std::int64_t kMaxWidth = 1 << 18;
inline constexpr std::int64_t kMaxHeads = 1 << 12;
inline constexpr std::int64_t kMaxExperts = 1 << 14;
inline constexpr std::int64_t kMaxLayers = 1 << 10;
inline constexpr std::int64_t kMaxVocab = std::int64_t{1} << 31;
inline constexpr std::int64_t kMaxTokens = std::int64_t{1} << 31;

}  // namespace shunt::detail

#pragma once

#include <cstdint>

#include <shunt/core/random.h>

namespace shunt::detail {

/// What random numbers are for. Each purpose has its own seed, so that, say, masking does not change what is
/// chosen. The values are part of the result: never renumber.
enum class Purpose : std::uint64_t {
  num_tokens = 1,
  permutation = 2,
  choice = 3,
  weight = 4,
  mask = 5,
  word = 6,
  router = 7,
  hash_gate = 8,
  jitter = 9,
  noise = 10,
  popularity = 11,
  logits = 12,
  network = 13,
};

inline constexpr int kTokenBits = 33;

[[nodiscard]] inline std::uint64_t purpose_seed(std::uint64_t seed, Purpose purpose) noexcept {
  return Random(seed, static_cast<std::uint64_t>(purpose)).next_u64();
}

/// Stream of one token of one group: a group id has 31 bits, which leaves kTokenBits for the token.
[[nodiscard]] inline std::uint64_t token_stream(std::int32_t group, std::int64_t token) noexcept {
  return (static_cast<std::uint64_t>(group) << kTokenBits) | static_cast<std::uint64_t>(token);
}

}  // namespace shunt::detail

#pragma once

#include <cstdint>

#include <shunt/transport/transport.h>

namespace shunt {

/// Whether a word that was seen as `seen` has come to `value`. Words count modulo 2^64.
[[nodiscard]] inline bool reached(std::uint64_t seen, std::uint64_t value) noexcept {
  return static_cast<std::int64_t>(seen - value) >= 0;
}

/// For bytes of `peer` that `buffer` does not have, or no rank: Errc::invalid_argument, with what there is.
[[noreturn]] void throw_outside(const World& world, const SymmetricBuffer& buffer, std::int32_t peer,
                                std::int64_t offset, std::int64_t bytes);

}  // namespace shunt

#pragma once

#include <cstddef>
#include <cstdint>

namespace shunt::bench {

/// Which message a payload belongs to. The same key gives the same bytes; the next sequence number gives
/// another first byte, so that a message which did not arrive never looks like one that did.
struct PayloadKey {
  std::uint64_t sequence = 0;
  std::int32_t sender = 0;
  std::int32_t receiver = 0;
  std::int64_t slot = 0;
};

void fill_payload(std::byte* to, std::int64_t bytes, const PayloadKey& key) noexcept;
/// Position of the first byte that is not as fill_payload() writes it, or -1.
[[nodiscard]] std::int64_t first_wrong_byte(const std::byte* at, std::int64_t bytes,
                                            const PayloadKey& key) noexcept;

}  // namespace shunt::bench

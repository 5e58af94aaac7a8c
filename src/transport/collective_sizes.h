#pragma once

#include <cstdint>
#include <span>

namespace shunt {

/// The sizes that a rank may pass to the Collectives of `max_bytes` it is part of: one check, and one text, for all
/// that implement them.
/// Errors: Errc::invalid_argument; nothing has moved.
struct CollectiveSizes {
  std::int32_t rank = 0;
  std::int32_t size = 1;
  std::int64_t max_bytes = 0;

  void check_allgather(std::int64_t bytes) const;
  void check_alltoall(std::int64_t bytes_per_peer) const;
  void check_alltoallv(std::span<const std::int64_t> send_offsets, std::span<const std::int64_t> send_bytes,
                       std::span<const std::int64_t> receive_offsets,
                       std::span<const std::int64_t> receive_bytes) const;
};

}  // namespace shunt

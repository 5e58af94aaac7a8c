#include "collective_sizes.h"

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt {

void CollectiveSizes::check_allgather(std::int64_t bytes) const {
  if (bytes < 0 || bytes > max_bytes) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: allgather of {} bytes; 0 to {} are allowed", rank, bytes, max_bytes));
  }
}

void CollectiveSizes::check_alltoall(std::int64_t bytes_per_peer) const {
  if (bytes_per_peer < 0 || bytes_per_peer > max_bytes / size) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: alltoall of {} bytes per peer; 0 to {} are allowed with {} ranks", rank,
                            bytes_per_peer, max_bytes / size, size));
  }
}

void CollectiveSizes::check_alltoallv(std::span<const std::int64_t> send_offsets,
                                      std::span<const std::int64_t> send_bytes,
                                      std::span<const std::int64_t> receive_offsets,
                                      std::span<const std::int64_t> receive_bytes) const {
  const auto ranks = static_cast<std::size_t>(size);
  if (send_offsets.size() != ranks || send_bytes.size() != ranks || receive_offsets.size() != ranks ||
      receive_bytes.size() != ranks) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("rank {}: alltoallv with {} send offsets, {} send sizes, {} receive offsets and {} "
                    "receive sizes; {} of each are allowed",
                    rank, send_offsets.size(), send_bytes.size(), receive_offsets.size(),
                    receive_bytes.size(), size));
  }
  for (std::size_t peer = 0; peer < ranks; ++peer) {
    if (send_offsets[peer] < 0 || send_bytes[peer] < 0 || send_bytes[peer] > max_bytes ||
        send_offsets[peer] > max_bytes - send_bytes[peer]) {
      throw Error(Errc::invalid_argument,
                  fmt::format("rank {}: alltoallv sends {} bytes from offset {} to rank {}; pieces within 0 "
                              "to {} are allowed",
                              rank, send_bytes[peer], send_offsets[peer], peer, max_bytes));
    }
    if (receive_offsets[peer] < 0 || receive_bytes[peer] < 0) {
      throw Error(
          Errc::invalid_argument,
          fmt::format(
              "rank {}: alltoallv receives {} bytes at offset {} from rank {}; neither may be negative", rank,
              receive_bytes[peer], receive_offsets[peer], peer));
    }
  }
}

}  // namespace shunt

#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include <shunt/transport/transport.h>

namespace shunt {

/// Collectives among all ranks. Every rank makes the same calls in the same order.
/// Threads:  as Transport.
/// Errors:   Errc::invalid_argument (sizes beyond max_bytes: nothing moved; a peer sends another size than
///           expected: all other pieces moved; usable either way), Errc::timeout, Errc::peer_lost (dead).
/// Ordering: a call returns when this rank's result is complete and its inputs may be reused.
class Collectives {
 public:
  virtual ~Collectives() = default;
  virtual void barrier(std::chrono::nanoseconds timeout) = 0;
  /// receive [R, bytes]: the `bytes` of every rank in rank order; bytes <= max_bytes.
  virtual void allgather(const void* send, std::int64_t bytes, void* receive,
                         std::chrono::nanoseconds timeout) = 0;
  /// send and receive [R, bytes_per_peer]; R * bytes_per_peer <= max_bytes.
  virtual void alltoall(const void* send, std::int64_t bytes_per_peer, void* receive,
                        std::chrono::nanoseconds timeout) = 0;
  /// Symmetric memory [max_bytes]: alltoallv from here spares a staging copy. Holds its content until this
  /// rank's next collective call other than barrier.
  [[nodiscard]] virtual std::byte* send_buffer() noexcept = 0;
  /// Piece for rank p: send + send_offsets[p], send_bytes[p] long; the piece from rank p lands at receive +
  /// receive_offsets[p] and must be receive_bytes[p] long. Pieces do not overlap; the end of the last one,
  /// send_offsets [p] + send_bytes[p], is at most max_bytes.
  virtual void alltoallv(const void* send, std::span<const std::int64_t> send_offsets,
                         std::span<const std::int64_t> send_bytes, void* receive,
                         std::span<const std::int64_t> receive_offsets,
                         std::span<const std::int64_t> receive_bytes, std::chrono::nanoseconds timeout) = 0;
};

}  // namespace shunt

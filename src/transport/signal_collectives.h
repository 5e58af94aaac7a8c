#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <shunt/transport/collectives.h>

#include "collective_sizes.h"

namespace shunt {

/// Collectives over the operations of any Transport.
/// Each exchange has an epoch e. Rank s announces its piece for p in a line of p's memory that belongs to (s,
/// parity of e): signal word, size, place, and the bytes themselves where they are few. Larger pieces are
/// pulled from s's memory where it can be loaded, and otherwise put in chunks with two slots and an
/// acknowledgement per chunk. Reuse: who has finished e + 1 has heard in e + 1 from every peer, which
/// therefore has finished e; so what was written for e may be overwritten in e + 2 without any
/// acknowledgement. Only the send buffer, of which there is one, and chunk slots need acknowledgements.
/// Ranks that the transport excludes are left out: nothing goes to them, and where their piece would land
/// nothing is written. A rank that was lost inside a call leaves the survivors at different epochs; they need
/// a new object.
class SignalCollectives final : public Collectives {
 public:
  SignalCollectives(Transport& transport, std::int64_t max_bytes, Deadline deadline);
  ~SignalCollectives() override;
  SignalCollectives(const SignalCollectives&) = delete;
  SignalCollectives& operator=(const SignalCollectives&) = delete;

  void barrier(std::chrono::nanoseconds timeout) override;
  void allgather(const void* send, std::int64_t bytes, void* receive,
                 std::chrono::nanoseconds timeout) override;
  void alltoall(const void* send, std::int64_t bytes_per_peer, void* receive,
                std::chrono::nanoseconds timeout) override;
  [[nodiscard]] std::byte* send_buffer() noexcept override { return memory_.local + send_at_; }
  void alltoallv(const void* send, std::span<const std::int64_t> send_offsets,
                 std::span<const std::int64_t> send_bytes, void* receive,
                 std::span<const std::int64_t> receive_offsets, std::span<const std::int64_t> receive_bytes,
                 std::chrono::nanoseconds timeout) override;

 private:
  struct Outgoing {
    std::int64_t offset = 0;  ///< In `send` of the call
    std::int64_t bytes = 0;
    std::uint64_t chunks = 0;  ///< Of this call, where pieces travel in chunks
  };
  struct Incoming {
    std::byte* to = nullptr;
    std::int64_t bytes = 0;      ///< What the caller expects
    std::int64_t announced = 0;  ///< What the peer sends
    bool in_chunks = false;
  };
  /// Behind the signal word of a line.
  struct Announcement {
    std::int64_t bytes = 0;
    std::int64_t offset = 0;  ///< Of the piece in the sender's memory
    std::uint32_t way = 0;    ///< Way
    std::uint32_t unused = 0;
  };
  enum class Way : std::uint32_t { in_line, pull, pull_and_acknowledge, chunks };

  /// Moves outgoing_ to the peers' incoming_; `extent` is the end of the last outgoing piece.
  void exchange(const char* phase, const std::byte* send, std::int64_t extent,
                std::chrono::nanoseconds timeout);
  [[nodiscard]] std::int64_t stage(const std::byte* send, std::int64_t extent, Way& way);
  void announce(std::int32_t peer, const std::byte* send, std::int64_t staged_at, Way way);
  void receive_announced(std::int32_t peer, Deadline deadline, const char* phase);
  void exchange_chunks(const std::byte* send, Deadline deadline, const char* phase);
  void put_chunk(std::int32_t peer, const std::byte* send, std::int64_t at, Deadline deadline,
                 const char* phase);
  void take_chunk(std::int32_t peer, std::int64_t at, Deadline deadline, const char* phase);
  void note_difference(std::int32_t peer, const char* phase);

  [[nodiscard]] Outgoing& outgoing(std::int32_t peer) { return outgoing_[static_cast<std::size_t>(peer)]; }
  [[nodiscard]] Incoming& incoming(std::int32_t peer) { return incoming_[static_cast<std::size_t>(peer)]; }
  [[nodiscard]] std::int32_t peer_at(std::int32_t step) const noexcept {
    const std::int32_t peer = rank_ + step;
    return peer < size_ ? peer : peer - size_;
  }
  /// The peers that are not excluded, each rank's own next ones first.
  template <class Call>
  void for_each_peer(const Call& call) {
    for (std::int32_t step = 1; step < size_; ++step) {
      const std::int32_t peer = peer_at(step);
      if (!transport_.excluded(peer)) call(peer);
    }
  }
  [[nodiscard]] std::int64_t line_at(std::int32_t sender) const noexcept;
  [[nodiscard]] std::int64_t chunk_signal_at(std::int32_t sender, std::uint64_t chunk) const noexcept;
  [[nodiscard]] std::int64_t chunk_at(std::int32_t sender, std::uint64_t chunk) const noexcept;
  [[nodiscard]] std::byte* draft(std::int32_t peer);

  Transport& transport_;
  std::int32_t rank_;
  std::int32_t size_;
  CollectiveSizes sizes_;
  bool pull_;  ///< Peers' memory can be loaded
  std::int64_t small_bytes_ = 0;
  std::int64_t chunk_bytes_ = 0;
  // Offsets in memory_; each rank's part has the same layout.
  std::int64_t acknowledged_at_ = 0;
  std::int64_t lines_at_ = 0;
  std::int64_t chunk_signals_at_ = 0;
  std::int64_t chunks_at_ = 0;
  std::int64_t small_at_ = 0;
  std::int64_t send_at_ = 0;
  SymmetricBuffer memory_;

  std::uint64_t barrier_epoch_ = 0;
  std::uint64_t epoch_ = 0;
  std::vector<Outgoing> outgoing_;
  std::vector<Incoming> incoming_;
  std::vector<std::uint64_t> chunks_sent_;   ///< To each peer, ever
  std::vector<std::uint64_t> chunks_taken_;  ///< From each peer, ever
  std::vector<std::byte>
      drafts_;              ///< Lines as sent, by parity: a transport may read them until the peers have them
  std::string difference_;  ///< First mismatch of the running call
};

}  // namespace shunt

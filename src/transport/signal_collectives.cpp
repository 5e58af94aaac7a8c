#include "signal_collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include <shunt/core/error.h>

namespace shunt {
namespace {

/// A line holds the signal word, the announcement and up to kInLine bytes of payload: sizes of one count
/// exchange.
constexpr std::int64_t kLine = 4 * kSignalStride;
constexpr std::int64_t kAnnouncementAt = 8;
constexpr std::int64_t kPayloadAt = 32;
constexpr std::int64_t kInLine = kLine - kPayloadAt;
/// Up to here a call's pieces are copied to staging memory of two parities, which spares the acknowledgement.
constexpr std::int64_t kSmall = 64 << 10;
constexpr std::int64_t kLargestChunk = 64 << 10;
constexpr std::int64_t kSmallestChunk = 4 << 10;
constexpr std::int64_t kChunksTogether = 4 << 20;

[[nodiscard]] std::int64_t align_up(std::int64_t bytes) {
  return (bytes + kSignalStride - 1) / kSignalStride * kSignalStride;
}

void copy_bytes(std::byte* to, const std::byte* from, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

[[nodiscard]] Deadline deadline_after(std::chrono::nanoseconds timeout) {
  const Deadline now = Clock::now();
  return timeout < Deadline::max() - now ? now + timeout : Deadline::max();
}

}  // namespace

SignalCollectives::SignalCollectives(Transport& transport, std::int64_t max_bytes, Deadline deadline)
    : transport_(transport),
      rank_(transport.world().rank),
      size_(transport.world().size),
      sizes_{.rank = rank_, .size = size_, .max_bytes = max_bytes},
      pull_(transport.capabilities().load_store),
      outgoing_(static_cast<std::size_t>(size_)),
      incoming_(static_cast<std::size_t>(size_)),
      chunks_sent_(static_cast<std::size_t>(size_)),
      chunks_taken_(static_cast<std::size_t>(size_)),
      drafts_(static_cast<std::size_t>(2 * size_ * kLine)) {
  // A negative size goes on to allocate(), where the ranks learn of it together.
  const std::int64_t payload = std::max<std::int64_t>(max_bytes, 0);
  std::int64_t end = size_ * kSignalStride;  // The barrier's words come first.
  const auto take = [&end](std::int64_t bytes) {
    const std::int64_t at = end;
    end += align_up(bytes);
    return at;
  };
  acknowledged_at_ = take(size_ * kSignalStride);
  lines_at_ = take(2 * size_ * kLine);
  if (pull_) {
    small_bytes_ = align_up(std::min(payload, kSmall));
    small_at_ = take(2 * small_bytes_);
  } else {
    chunk_bytes_ = std::clamp(kChunksTogether / (2 * size_), kSmallestChunk, kLargestChunk);
    chunk_bytes_ = align_up(std::min(chunk_bytes_, payload));
    chunk_signals_at_ = take(2 * size_ * kSignalStride);
    chunks_at_ = take(2 * size_ * chunk_bytes_);
  }
  send_at_ = end;
  memory_ = transport.allocate(max_bytes < 0 ? max_bytes : end + max_bytes, "collectives", deadline);
}

SignalCollectives::~SignalCollectives() {
  transport_.release(memory_);
}

void SignalCollectives::barrier(std::chrono::nanoseconds timeout) {
  if (size_ == 1) return;
  ++barrier_epoch_;
  for_each_peer(
      [&](std::int32_t peer) { transport_.signal(memory_, peer, rank_ * kSignalStride, barrier_epoch_); });
  const Deadline deadline = deadline_after(timeout);
  for_each_peer([&](std::int32_t peer) {
    transport_.wait_signal(memory_, peer * kSignalStride, barrier_epoch_, deadline,
                           {.phase = "barrier", .peer = peer});
  });
}

void SignalCollectives::allgather(const void* send, std::int64_t bytes, void* receive,
                                  std::chrono::nanoseconds timeout) {
  sizes_.check_allgather(bytes);
  for (std::int32_t peer = 0; peer < size_; ++peer) {
    outgoing(peer) = {.offset = 0, .bytes = bytes};
    incoming(peer) = {.to = static_cast<std::byte*>(receive) + peer * bytes, .bytes = bytes};
  }
  exchange("allgather", static_cast<const std::byte*>(send), bytes, timeout);
}

void SignalCollectives::alltoall(const void* send, std::int64_t bytes_per_peer, void* receive,
                                 std::chrono::nanoseconds timeout) {
  sizes_.check_alltoall(bytes_per_peer);
  for (std::int32_t peer = 0; peer < size_; ++peer) {
    outgoing(peer) = {.offset = peer * bytes_per_peer, .bytes = bytes_per_peer};
    incoming(peer) = {.to = static_cast<std::byte*>(receive) + peer * bytes_per_peer,
                      .bytes = bytes_per_peer};
  }
  exchange("alltoall", static_cast<const std::byte*>(send), size_ * bytes_per_peer, timeout);
}

void SignalCollectives::alltoallv(const void* send, std::span<const std::int64_t> send_offsets,
                                  std::span<const std::int64_t> send_bytes, void* receive,
                                  std::span<const std::int64_t> receive_offsets,
                                  std::span<const std::int64_t> receive_bytes,
                                  std::chrono::nanoseconds timeout) {
  sizes_.check_alltoallv(send_offsets, send_bytes, receive_offsets, receive_bytes);
  std::int64_t extent = 0;
  for (std::int32_t peer = 0; peer < size_; ++peer) {
    const auto index = static_cast<std::size_t>(peer);
    const std::int64_t offset = send_offsets[index];
    const std::int64_t bytes = send_bytes[index];
    extent = std::max(extent, offset + bytes);
    outgoing(peer) = {.offset = offset, .bytes = bytes};
    incoming(peer) = {.to = static_cast<std::byte*>(receive) + receive_offsets[index],
                      .bytes = receive_bytes[index]};
  }
  exchange("alltoallv", static_cast<const std::byte*>(send), extent, timeout);
}

void SignalCollectives::exchange(const char* phase, const std::byte* send, std::int64_t extent,
                                 std::chrono::nanoseconds timeout) {
  ++epoch_;
  Way way = Way::chunks;
  const std::int64_t staged_at = pull_ ? stage(send, extent, way) : 0;
  for_each_peer([&](std::int32_t peer) { announce(peer, send, staged_at, way); });
  const Deadline deadline = deadline_after(timeout);

  Incoming& own = incoming(rank_);
  own.announced = outgoing(rank_).bytes;
  if (own.announced == own.bytes) {
    copy_bytes(own.to, send + outgoing(rank_).offset, own.bytes);
  } else {
    note_difference(rank_, phase);
  }
  for_each_peer([&](std::int32_t peer) { receive_announced(peer, deadline, phase); });
  if (way == Way::chunks) exchange_chunks(send, deadline, phase);
  if (way == Way::pull_and_acknowledge) {
    for_each_peer([&](std::int32_t peer) {
      if (outgoing(peer).bytes <= kInLine) return;
      transport_.wait_signal(memory_, acknowledged_at_ + peer * kSignalStride, epoch_, deadline,
                             {.phase = phase, .peer = peer});
    });
  }
  if (!difference_.empty()) {
    std::string message;
    message.swap(difference_);
    throw Error(Errc::invalid_argument, message);
  }
}

/// Result: where in this rank's memory_ `send` can be read by the peers.
std::int64_t SignalCollectives::stage(const std::byte* send, std::int64_t extent, Way& way) {
  const auto begin = reinterpret_cast<std::uintptr_t>(send_buffer());
  const auto given = reinterpret_cast<std::uintptr_t>(send);
  if (given >= begin && given <= begin + static_cast<std::uintptr_t>(sizes_.max_bytes - extent)) {
    way = Way::pull_and_acknowledge;
    return send_at_ + static_cast<std::int64_t>(given - begin);
  }
  const bool small = extent <= small_bytes_;
  way = small ? Way::pull : Way::pull_and_acknowledge;
  const std::int64_t at = small ? small_at_ + static_cast<std::int64_t>(epoch_ % 2) * small_bytes_ : send_at_;
  std::int64_t last = -1;
  for (std::int32_t peer = 0; peer < size_; ++peer) {
    const Outgoing& piece = outgoing(peer);
    // An allgather's pieces are one and the same.
    if (peer == rank_ || transport_.excluded(peer) || piece.bytes <= kInLine || piece.offset == last)
      continue;
    copy_bytes(memory_.local + at + piece.offset, send + piece.offset, piece.bytes);
    last = piece.offset;
  }
  return at;
}

void SignalCollectives::announce(std::int32_t peer, const std::byte* send, std::int64_t staged_at, Way way) {
  const Outgoing& piece = outgoing(peer);
  const bool in_line = piece.bytes <= kInLine;
  const Announcement announcement{.bytes = piece.bytes,
                                  .offset = staged_at + piece.offset,
                                  .way = static_cast<std::uint32_t>(in_line ? Way::in_line : way)};
  static_assert(kAnnouncementAt + sizeof(Announcement) == kPayloadAt);
  std::byte* line = draft(peer);
  std::memcpy(line, &announcement, sizeof announcement);
  if (in_line) copy_bytes(line + sizeof announcement, send + piece.offset, piece.bytes);
  const std::int64_t at = line_at(rank_);
  transport_.put_signal(memory_, peer, at + kAnnouncementAt, line,
                        static_cast<std::int64_t>(sizeof announcement) + (in_line ? piece.bytes : 0), at,
                        epoch_);
}

void SignalCollectives::receive_announced(std::int32_t peer, Deadline deadline, const char* phase) {
  const std::int64_t at = line_at(peer);
  transport_.wait_signal(memory_, at, epoch_, deadline, {.phase = phase, .peer = peer});
  Announcement announcement;
  const std::byte* line = memory_.local + at;
  std::memcpy(&announcement, line + kAnnouncementAt, sizeof announcement);
  Incoming& piece = incoming(peer);
  piece.announced = announcement.bytes;
  piece.in_chunks = false;
  const bool wanted = piece.announced == piece.bytes;
  if (!wanted) note_difference(peer, phase);
  switch (static_cast<Way>(announcement.way)) {
    case Way::in_line:
      if (wanted) copy_bytes(piece.to, line + kPayloadAt, piece.bytes);
      break;
    case Way::pull:
    case Way::pull_and_acknowledge:
      if (wanted)
        copy_bytes(piece.to, transport_.peer_pointer(memory_, peer) + announcement.offset, piece.bytes);
      if (static_cast<Way>(announcement.way) == Way::pull_and_acknowledge) {
        transport_.signal(memory_, peer, acknowledged_at_ + rank_ * kSignalStride, epoch_);
      }
      break;
    case Way::chunks:
      piece.in_chunks = true;
      break;
  }
}

/// Round k moves chunk k of every piece. A rank waits in round k only for what its peers do in rounds before
/// k, or first in round k, so all get through, whatever the sizes are.
void SignalCollectives::exchange_chunks(const std::byte* send, Deadline deadline, const char* phase) {
  std::int64_t longest = 0;
  for_each_peer([&](std::int32_t peer) {
    if (outgoing(peer).bytes > kInLine) longest = std::max(longest, outgoing(peer).bytes);
    if (incoming(peer).in_chunks) longest = std::max(longest, incoming(peer).announced);
  });
  for (std::int64_t at = 0; at < longest; at += chunk_bytes_) {
    for_each_peer([&](std::int32_t peer) {
      if (outgoing(peer).bytes > std::max(at, kInLine)) put_chunk(peer, send, at, deadline, phase);
    });
    for_each_peer([&](std::int32_t peer) {
      if (incoming(peer).in_chunks && incoming(peer).announced > at) take_chunk(peer, at, deadline, phase);
    });
  }
  // What a peer has taken has been read out of `send`.
  for_each_peer([&](std::int32_t peer) {
    if (outgoing(peer).bytes <= kInLine) return;
    transport_.wait_signal(memory_, acknowledged_at_ + peer * kSignalStride,
                           chunks_sent_[static_cast<std::size_t>(peer)], deadline,
                           {.phase = phase, .peer = peer});
  });
}

void SignalCollectives::put_chunk(std::int32_t peer, const std::byte* send, std::int64_t at,
                                  Deadline deadline, const char* phase) {
  const Outgoing& piece = outgoing(peer);
  const std::uint64_t chunk = ++chunks_sent_[static_cast<std::size_t>(peer)];
  // The slot is free when the chunk before the last has been taken.
  if (chunk > 2) {
    transport_.wait_signal(memory_, acknowledged_at_ + peer * kSignalStride, chunk - 2, deadline,
                           {.phase = phase, .peer = peer});
  }
  transport_.put_signal(memory_, peer, chunk_at(rank_, chunk), send + piece.offset + at,
                        std::min(chunk_bytes_, piece.bytes - at), chunk_signal_at(rank_, chunk), chunk);
}

void SignalCollectives::take_chunk(std::int32_t peer, std::int64_t at, Deadline deadline, const char* phase) {
  const Incoming& piece = incoming(peer);
  const std::uint64_t chunk = ++chunks_taken_[static_cast<std::size_t>(peer)];
  transport_.wait_signal(memory_, chunk_signal_at(peer, chunk), chunk, deadline,
                         {.phase = phase, .peer = peer});
  if (piece.announced == piece.bytes) {
    copy_bytes(piece.to + at, memory_.local + chunk_at(peer, chunk),
               std::min(chunk_bytes_, piece.bytes - at));
  }
  transport_.signal(memory_, peer, acknowledged_at_ + rank_ * kSignalStride, chunk);
}

/// The call still goes through all its steps, so that the peers get theirs and the object stays usable.
void SignalCollectives::note_difference(std::int32_t peer, const char* phase) {
  if (!difference_.empty()) return;
  difference_ =
      fmt::format("rank {}: {}: rank {} sends {} bytes, but {} are expected from it; both must be equal",
                  rank_, phase, peer, incoming(peer).announced, incoming(peer).bytes);
}

std::int64_t SignalCollectives::line_at(std::int32_t sender) const noexcept {
  return lines_at_ + (static_cast<std::int64_t>(epoch_ % 2) * size_ + sender) * kLine;
}

std::int64_t SignalCollectives::chunk_signal_at(std::int32_t sender, std::uint64_t chunk) const noexcept {
  return chunk_signals_at_ + (2 * sender + static_cast<std::int64_t>(chunk % 2)) * kSignalStride;
}

std::int64_t SignalCollectives::chunk_at(std::int32_t sender, std::uint64_t chunk) const noexcept {
  return chunks_at_ + (2 * sender + static_cast<std::int64_t>(chunk % 2)) * chunk_bytes_;
}

std::byte* SignalCollectives::draft(std::int32_t peer) {
  return drafts_.data() +
         static_cast<std::size_t>((static_cast<std::int64_t>(epoch_ % 2) * size_ + peer) * kLine);
}

}  // namespace shunt

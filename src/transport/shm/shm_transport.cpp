#include "shm/shm_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::shm {
namespace {

/// Survivors may have come to different meetings when one of them was lost; they count anew then.
constexpr std::uint64_t kMeetingsPerMask = std::uint64_t{1} << 40;

/// Left free in the file at every exclusion, more than the memory of any machine: an excluded rank may be in
/// the middle of an allocation that the others gave up, and map what it was to get at any later time.
constexpr std::int64_t kOffsetsPerMask = std::int64_t{1} << 44;

void store_signal(std::byte* word, std::uint64_t value) noexcept {
  std::atomic_ref(*reinterpret_cast<std::uint64_t*>(word)).store(value, std::memory_order_release);
}

void copy_bytes(std::byte* to, const void* from, std::int64_t bytes) noexcept {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

[[nodiscard]] std::vector<std::int32_t> all_ranks(std::int32_t size) {
  std::vector<std::int32_t> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

}  // namespace

ShmTransport::ShmTransport(Segment& segment, const World& world, bool processes, bool oversubscribed,
                           Deadline deadline)
    : ShmTransport(segment, world, all_ranks(world.size), world.size, nullptr, processes, oversubscribed,
                   deadline) {}

ShmTransport::ShmTransport(Segment& segment, const World& world, std::vector<std::int32_t> members,
                           std::int32_t world_size, WaitHelper* helper, bool processes, bool oversubscribed,
                           Deadline deadline)
    : Transport(world),
      segment_(segment),
      processes_(processes),
      members_(std::move(members)),
      waiter_(segment, members_, world.rank, world_size, oversubscribed),
      next_offset_(segment.first_offset()) {
  waiter_.set_helper(helper);
  if (processes_) waiter_.watch_processes(deadline);
  meet(deadline, "start");
}

ShmTransport::~ShmTransport() {
  // Not retired: a peer may still read what this rank leaves behind.
  for (const Chunk& chunk : chunks_) {
    if (chunk.base != nullptr) segment_.unmap(chunk.offset);
  }
}

void ShmTransport::meet(Deadline deadline, const char* phase) {
  ++meetings_;
  std::atomic_ref(segment_.slot(world_.rank).arrived).store(meetings_, std::memory_order_release);
  for (std::int32_t step = 1; step < world_.size; ++step) {
    const std::int32_t peer = (world_.rank + step) % world_.size;
    if (excluded(peer)) continue;
    const WaitSite site{.phase = phase, .peer = name_of(peer)};
    const std::uint64_t seen = waiter_.wait(reinterpret_cast<const std::byte*>(&segment_.slot(peer).arrived),
                                            meetings_, deadline, site);
    if (seen / kMeetingsPerMask == meetings_ / kMeetingsPerMask) continue;
    // The peer is past an exclusion that this rank has not made, or has been the subject of.
    waiter_.check_excluded(site);
    throw Error(Errc::peer_lost, fmt::format("rank {}: rank {} has left the meeting of all ranks in {} and "
                                             "excluded a rank that this one has not excluded",
                                             name_of(world_.rank), name_of(peer), phase));
  }
  waiter_.check_excluded({.phase = phase});
}

void ShmTransport::exclude(std::span<const std::int32_t> ranks) {
  for (const std::int32_t rank : ranks) {
    if (rank >= 0 && rank < world_.size && rank != world_.rank) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: exclude rank {}; other ranks from 0 to {} are allowed",
                            name_of(world_.rank), rank, world_.size - 1));
  }
  excluded_.resize(static_cast<std::size_t>(world_.size));
  for (const std::int32_t rank : ranks) {
    excluded_[static_cast<std::size_t>(rank)] = 1;
    waiter_.forget(name_of(rank));
    std::int32_t nobody = 0;
    std::atomic_ref(segment_.slot(rank).excluded_by)
        .compare_exchange_strong(nobody, 1 + name_of(world_.rank), std::memory_order_acq_rel);
  }
  waiter_.settle();
  meetings_ = (meetings_ / kMeetingsPerMask + 1) * kMeetingsPerMask;
  allocations_ = 0;
  next_offset_ += kOffsetsPerMask;
}

std::int32_t ShmTransport::lowest_rank() const noexcept {
  std::int32_t rank = 0;
  while (excluded(rank)) ++rank;
  return rank;
}

std::int32_t ShmTransport::live_ranks() const noexcept {
  return world_.size - static_cast<std::int32_t>(std::count(excluded_.begin(), excluded_.end(), 1));
}

SymmetricBuffer ShmTransport::allocate(std::int64_t bytes, const char* what, Deadline deadline) {
  const std::size_t parity = allocations_++ % 2;
  Proposal& own = segment_.slot(world_.rank).proposals[parity];
  const std::int32_t lowest = lowest_rank();
  own = {.bytes = bytes,
         .available = world_.rank == lowest ? available_memory_bytes() : 0,
         .offset = next_offset_,
         .error = 0};
  meet(deadline, "allocate");
  const Proposal& first = segment_.slot(lowest).proposals[parity];
  // After an exclusion they may differ: one survivor got through an allocation that another gave up.
  std::int64_t offset = own.offset;
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    if (excluded(rank)) continue;
    const Proposal& proposal = segment_.slot(rank).proposals[parity];
    offset = std::max(offset, proposal.offset);
    if (proposal.bytes != first.bytes) {
      throw Error(
          Errc::invalid_argument,
          fmt::format("rank {}: {}: rank {} asks for {} bytes of symmetric memory and rank {} for {}; all "
                      "ranks must ask for the same",
                      name_of(world_.rank), what, name_of(lowest), first.bytes, name_of(rank),
                      proposal.bytes));
    }
  }
  if (bytes < 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: {}: {} bytes of symmetric memory; 0 or more are allowed",
                            name_of(world_.rank), what, bytes));
  }
  // Beyond this the arithmetic of offsets would overflow; no machine has it.
  const bool absurd = bytes > std::numeric_limits<std::int64_t>::max() / (std::int64_t{1} << 22);
  const std::int64_t stride = absurd ? std::numeric_limits<std::int64_t>::max() : segment_.stride_of(bytes);
  check_memory(first, stride, what);

  Chunk chunk{.base = nullptr, .stride = stride, .offset = offset, .without = excluded_};
  next_offset_ = segment_.next_offset(offset, stride);
  own.error = map_and_touch(chunk);
  meet(deadline, "allocate");
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    const int error = excluded(rank) ? 0 : segment_.slot(rank).proposals[parity].error;
    if (error == 0) continue;
    // No rank touches the chunk after this meeting, and its counter of ranks may have no page.
    if (chunk.base != nullptr) segment_.unmap(chunk.offset);
    if (world_.rank == lowest) segment_.discard(chunk.offset, chunk.stride);
    throw Error(Errc::out_of_memory,
                fmt::format("rank {}: {}: rank {} could not get its {}: {}", name_of(world_.rank), what,
                            name_of(rank), format_bytes(bytes), std::strerror(error)));
  }
  if (processes_) touch_peers(chunk);
  auto free = std::find_if(chunks_.begin(), chunks_.end(), [](const Chunk& c) { return c.base == nullptr; });
  if (free == chunks_.end()) free = chunks_.emplace(chunks_.end());
  *free = chunk;
  return {.local = chunk.base + stride * world_.rank,
          .bytes = bytes,
          .id = static_cast<std::int32_t>(free - chunks_.begin())};
}

void ShmTransport::check_memory(const Proposal& decided, std::int64_t stride, const char* what) const {
  if (decided.available < 0) return;
  // Every process has page tables (8 bytes a page) for the parts of all ranks.
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  const std::int32_t ranks = live_ranks();
  const std::int64_t tables = processes_ ? stride / segment_.page_bytes() * 8 * ranks : 0;
  const std::int64_t each = stride == kMost ? kMost : stride + tables;
  const std::int64_t together = each > kMost / ranks ? kMost : each * ranks;
  if (together <= decided.available) return;
  throw Error(
      Errc::out_of_memory,
      fmt::format("rank {}: {} needs {} for {} ranks together ({} each, page tables included), but {} of "
                  "memory are available",
                  name_of(world_.rank), what, format_bytes(together), ranks, format_bytes(each),
                  format_bytes(decided.available)));
}

int ShmTransport::map_and_touch(Chunk& chunk) {
  chunk.base = segment_.map(chunk.offset, chunk.stride);
  if (chunk.base == nullptr) return errno;
  const std::int64_t own = chunk.stride * world_.rank;
  segment_.request_huge_pages(chunk.base + own, chunk.stride);
  if (const int error = segment_.populate(chunk.base + own, chunk.offset + own, chunk.stride)) return error;
  if (world_.rank != lowest_rank()) return 0;
  const std::int64_t tail = chunk.stride * world_.size;
  return segment_.populate(chunk.base + tail, chunk.offset + tail, segment_.page_bytes());
}

/// The peers' pages exist now; enters them in this rank's page table too, so that the first transfer does not
/// fault. A failure only leaves that to the first transfer.
void ShmTransport::touch_peers(const Chunk& chunk) {
  const auto touch = [&](std::int64_t from, std::int64_t to) {
    if (from < to) static_cast<void>(segment_.populate(chunk.base + from, chunk.offset + from, to - from));
  };
  // Not the parts of excluded ranks, which have no pages.
  std::int64_t from = 0;
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    if (!excluded(rank)) continue;
    touch(from, chunk.stride * rank);
    from = chunk.stride * (rank + 1);
  }
  touch(from, segment_.chunk_bytes(chunk.stride));
}

void ShmTransport::release(SymmetricBuffer& buffer) noexcept {
  if (holds(buffer, world_.rank)) {
    Chunk& chunk = chunks_[static_cast<std::size_t>(buffer.id)];
    // An excluded rank may only be slow: it must not find zeros where it still reads what it was given.
    std::vector<std::uint8_t> excused = std::move(chunk.without);
    for (std::int32_t rank = 0; rank < world_.size && !excluded_.empty(); ++rank) {
      excused.resize(static_cast<std::size_t>(world_.size));
      if (excluded(rank) && load_state(segment_.slot(rank)) != RankState::running)
        excused[static_cast<std::size_t>(rank)] = 1;
    }
    segment_.retire(chunk.offset, chunk.stride, world_.rank, excused);
    segment_.unmap(chunk.offset);
    chunk = {};
  }
  buffer = {};
}

std::byte* ShmTransport::peer_pointer(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
  if (!holds(buffer, peer) || excluded(peer)) return nullptr;
  const Chunk& chunk = chunks_[static_cast<std::size_t>(buffer.id)];
  return chunk.base + chunk.stride * peer;
}

std::byte* ShmTransport::target(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                std::int64_t bytes) const {
  if (!holds(buffer, peer) || offset < 0 || bytes < 0 || offset > buffer.bytes - bytes) [[unlikely]] {
    throw_outside(world_, buffer, peer, offset, bytes);
  }
  const Chunk& chunk = chunks_[static_cast<std::size_t>(buffer.id)];
  return chunk.base + chunk.stride * peer + offset;
}

std::byte* ShmTransport::signal_target(const SymmetricBuffer& buffer, std::int32_t peer,
                                       std::int64_t signal_offset) const {
  if (signal_offset % 8 != 0) [[unlikely]] {
    throw_outside(world_, buffer, peer, signal_offset, 8);
  }
  return target(buffer, peer, signal_offset, 8);
}

void ShmTransport::put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                       const void* from, std::int64_t bytes) {
  std::byte* to = target(buffer, peer, offset, bytes);
  if (!excluded(peer)) copy_bytes(to, from, bytes);
}

void ShmTransport::put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                              const void* from, std::int64_t bytes, std::int64_t signal_offset,
                              std::uint64_t value) {
  std::byte* word = signal_target(buffer, peer, signal_offset);
  std::byte* to = target(buffer, peer, offset, bytes);
  if (excluded(peer)) return;
  copy_bytes(to, from, bytes);
  store_signal(word, value);
}

void ShmTransport::signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
                          std::uint64_t value) {
  std::byte* word = signal_target(buffer, peer, signal_offset);
  if (!excluded(peer)) store_signal(word, value);
}

std::uint64_t ShmTransport::wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset,
                                        std::uint64_t value, Deadline deadline, const WaitSite& site) {
  return waiter_.wait(signal_target(buffer, world_.rank, signal_offset), value, deadline, site);
}

std::uint64_t ShmTransport::poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) {
  std::byte* word = signal_target(buffer, world_.rank, signal_offset);
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(word)).load(std::memory_order_acquire);
}

}  // namespace shunt::shm

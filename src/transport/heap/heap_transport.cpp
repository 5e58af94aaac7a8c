#include "heap/heap_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/transport/stream_puts.h>

#include "signal_word.h"

namespace shunt::heap {
namespace {

constexpr std::chrono::seconds kPatienceAtEnd{2};

[[nodiscard]] std::int64_t round_up(std::int64_t bytes) noexcept {
  constexpr std::int64_t kUnit = 4096;  // Windows of NCCL begin at such addresses
  return std::max<std::int64_t>((bytes + kUnit - 1) / kUnit, 1) * kUnit;
}

}  // namespace

HeapTransport::HeapTransport(Transport& host, std::unique_ptr<SymmetricHeap> heap, Deadline deadline,
                             std::unique_ptr<Transport> owned, EngineMaker make_engine)
    : Transport(host.world()),
      owned_(std::move(owned)),
      host_(host),
      heap_(std::move(heap)),
      make_engine_(make_engine),
      slots_(static_cast<std::size_t>(kSlots)),
      bells_(
          host, [this](const std::byte* word) { return heap_->load_signal(word); }, deadline) {
  agreement_ = host_.make_collectives(world_.size * static_cast<std::int64_t>(sizeof(Proposal)), deadline);
  // Shows which peers can be stored to, too.
  const SymmetricBuffer first = allocate(kStagingBytes, "staging", deadline);
  const std::vector<std::byte*>& parts = slots_[static_cast<std::size_t>(first.id)].parts;
  all_reachable_ = std::find(parts.begin(), parts.end(), nullptr) == parts.end();
  staging_ = first.id;
}

HeapTransport::~HeapTransport() {
  bool together = false;
  bells_.set_breaker(nullptr);
  try {
    heap_->quiet();
    agreement_->barrier(kPatienceAtEnd);
    together = true;
    for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
      if (slots_[slot].use != Use::free) heap_->release(static_cast<std::int32_t>(slot));
    }
  } catch (const Error&) {
    // A rank is gone, or ends by an error: what it would have to be asked for stays until the process ends.
    together = false;
  }
  heap_->close(together);
}

Capabilities HeapTransport::capabilities() const noexcept {
  // Without `ordered`: puts to one peer may travel by several queue pairs. Not maskable: the libraries allocate among
  // all of their ranks or not at all.
  return {.ordered = all_reachable_, .load_store = all_reachable_, .device_memory = true};
}

std::unique_ptr<Collectives> HeapTransport::make_collectives(std::int64_t max_bytes, Deadline deadline) {
  return host_.make_collectives(max_bytes, deadline);
}

std::chrono::nanoseconds HeapTransport::left(Deadline deadline) const {
  return std::max<std::chrono::nanoseconds>(deadline - Clock::now(), std::chrono::nanoseconds(0));
}

SymmetricBuffer HeapTransport::allocate(std::int64_t bytes, const char* what, Deadline deadline) {
  Proposal mine{.bytes = bytes, .available = heap_->available()};
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (slots_[slot].use == Use::released) mine.released[slot / 64] |= std::uint64_t{1} << slot % 64;
  }
  std::vector<Proposal> all(static_cast<std::size_t>(world_.size));
  agreement_->allgather(&mine, sizeof mine, all.data(), left(deadline));
  free_what_all_released(all);
  check_proposals(all, what);
  // Free on every rank alike: a slot becomes free in free_what_all_released() only.
  const auto found =
      std::find_if(slots_.begin(), slots_.end(), [](const Slot& slot) { return slot.use == Use::free; });
  if (found == slots_.end()) {
    throw Error(
        Errc::out_of_memory,
        fmt::format("rank {}: {} would be allocation {} of symmetric GPU memory; {} are possible at a time",
                    world_.rank, what, kSlots + 1, kSlots));
  }
  const auto id = static_cast<std::int32_t>(found - slots_.begin());
  // Of the library even an empty buffer gets something, so that its words have an address.
  Slot slot{.use = Use::held, .local = heap_->allocate(id, round_up(bytes)), .bytes = bytes, .parts = {}};
  const std::uint8_t failed = slot.local == nullptr ? 1 : 0;
  std::vector<std::uint8_t> failures(static_cast<std::size_t>(world_.size));
  agreement_->allgather(&failed, 1, failures.data(), left(deadline));
  const auto first = std::find(failures.begin(), failures.end(), 1);
  if (first != failures.end()) {
    // Given back together with the next allocation, by the ranks that got something as by those that got nothing.
    slot.use = Use::released;
    *found = std::move(slot);
    throw Error(Errc::out_of_memory,
                fmt::format("rank {}: {}: rank {} could not get its {} of symmetric GPU memory from {}",
                            world_.rank, what, first - failures.begin(), format_bytes(bytes), heap_->name()));
  }
  for (std::int32_t peer = 0; peer < world_.size; ++peer)
    slot.parts.push_back(peer == world_.rank ? slot.local : heap_->peer_pointer(id, peer));
  *found = std::move(slot);
  return {.local = found->local, .bytes = bytes, .id = id};
}

void HeapTransport::free_what_all_released(const std::vector<Proposal>& proposals) {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const bool everywhere = std::all_of(proposals.begin(), proposals.end(), [&](const Proposal& proposal) {
      return (proposal.released[slot / 64] >> slot % 64 & 1U) != 0;
    });
    if (!everywhere) continue;
    heap_->release(static_cast<std::int32_t>(slot));
    slots_[slot] = {};
  }
}

void HeapTransport::check_proposals(const std::vector<Proposal>& proposals, const char* what) const {
  const std::int64_t bytes = proposals.front().bytes;
  for (std::size_t rank = 0; rank < proposals.size(); ++rank) {
    if (proposals[rank].bytes == bytes) continue;
    throw Error(
        Errc::invalid_argument,
        fmt::format("rank {}: {}: rank 0 asks for {} bytes of symmetric memory and rank {} for {}; all "
                    "ranks must ask for the same",
                    world_.rank, what, bytes, rank, proposals[rank].bytes));
  }
  if (bytes < 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: {}: {} bytes of symmetric memory; 0 or more are allowed", world_.rank,
                            what, bytes));
  }
  for (std::size_t rank = 0; rank < proposals.size(); ++rank) {
    if (bytes <= proposals[rank].available) continue;
    throw Error(
        Errc::out_of_memory,
        fmt::format("rank {}: {} needs {} on every GPU, but on that of rank {} {} are free", world_.rank,
                    what, format_bytes(bytes), rank, format_bytes(proposals[rank].available)));
  }
}

void HeapTransport::release(SymmetricBuffer& buffer) noexcept {
  if (holds(buffer, world_.rank)) slots_[static_cast<std::size_t>(buffer.id)].use = Use::released;
  buffer = {};
}

bool HeapTransport::holds(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
  return peer >= 0 && peer < world_.size && buffer.id >= 0 && buffer.id < kSlots &&
         slots_[static_cast<std::size_t>(buffer.id)].use == Use::held;
}

std::byte* HeapTransport::peer_pointer(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
  return holds(buffer, peer) ? part(buffer, peer) : nullptr;
}

void HeapTransport::check(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                          std::int64_t bytes) const {
  if (holds(buffer, peer) && offset >= 0 && bytes >= 0 && offset <= buffer.bytes - bytes) [[likely]]
    return;
  throw_outside(world_, buffer, peer, offset, bytes);
}

void HeapTransport::check_signal(const SymmetricBuffer& buffer, std::int32_t peer,
                                 std::int64_t signal_offset) const {
  // A length that fits nowhere: check() says so.
  check(buffer, peer, signal_offset, signal_offset % 8 == 0 ? 8 : buffer.bytes + 1);
}

void HeapTransport::put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                        const void* from, std::int64_t bytes) {
  check(buffer, peer, offset, bytes);
  if (bytes == 0) return;
  if (std::byte* to = part(buffer, peer); to != nullptr) return heap_->copy(to + offset, from, bytes);
  put_over_network(buffer, peer, offset, from, bytes);
}

void HeapTransport::put_over_network(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                     const void* from, std::int64_t bytes) {
  const auto* source = static_cast<const std::byte*>(from);
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    const Slot& own = slots_[slot];
    // Addresses of other memory may be compared as numbers only.
    const auto begin = reinterpret_cast<std::uintptr_t>(own.local);
    const auto at = reinterpret_cast<std::uintptr_t>(source);
    if (own.local == nullptr || at < begin ||
        at - begin + static_cast<std::uintptr_t>(bytes) > static_cast<std::uintptr_t>(own.bytes))
      continue;
    return heap_->put(peer, buffer.id, offset, static_cast<std::int32_t>(slot),
                      static_cast<std::int64_t>(at - begin), bytes);
  }
  for (std::int64_t done = 0; done < bytes; done += kStagingBytes) {
    const std::int64_t piece = std::min(bytes - done, kStagingBytes);
    heap_->quiet();  // The staging buffer is empty then
    heap_->copy(slots_[static_cast<std::size_t>(staging_)].local, source + done, piece);
    heap_->put(peer, buffer.id, offset + done, staging_, 0, piece);
  }
}

void HeapTransport::put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                               const void* from, std::int64_t bytes, std::int64_t signal_offset,
                               std::uint64_t value) {
  check_signal(buffer, peer, signal_offset);
  put(buffer, peer, offset, from, bytes);
  store_and_ring(buffer, peer, signal_offset, value);
}

void HeapTransport::signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
                           std::uint64_t value) {
  check_signal(buffer, peer, signal_offset);
  store_and_ring(buffer, peer, signal_offset, value);
}

void HeapTransport::store_and_ring(const SymmetricBuffer& buffer, std::int32_t peer,
                                   std::int64_t signal_offset, std::uint64_t value) {
  if (std::byte* to = part(buffer, peer); to != nullptr)
    heap_->store_signal(to + signal_offset, value);
  else
    heap_->put_signal(peer, buffer.id, signal_offset, value);
  // Who hears the bell should find the word; where the network is later than that, the wait finds it when it looks next.
  heap_->quiet();
  bells_.ring(peer);
}

std::uint64_t HeapTransport::wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset,
                                         std::uint64_t value, Deadline deadline, const WaitSite& site) {
  check_signal(buffer, world_.rank, signal_offset);
  return bells_.wait(part(buffer, world_.rank) + signal_offset, value, deadline, site);
}

std::uint64_t HeapTransport::poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) {
  check_signal(buffer, world_.rank, signal_offset);
  return heap_->load_signal(part(buffer, world_.rank) + signal_offset);
}

void HeapTransport::fence() {
  // Puts to peers that are stored to follow each other; those over a network are waited for.
  if (!all_reachable_) heap_->quiet();
}

}  // namespace shunt::heap

namespace shunt {

StreamPuts* stream_puts(const Transport& transport) noexcept {
  const auto* const heap = dynamic_cast<const heap::HeapTransport*>(&transport);
  return heap == nullptr ? nullptr : heap->stream_puts();
}

}  // namespace shunt

#include "mpi/mpi_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

#include <shunt/core/error.h>

#include "mpi/mpi_collectives.h"

namespace shunt::mpi {
namespace {

constexpr int kHeaderTag = 1;
constexpr int kPayloadTag = 2;
constexpr std::size_t kMostSlots = 256;
/// Counts of MPI 3.1 are int.
constexpr std::int64_t kLargestMessage = std::int64_t{1} << 30;
/// Memory that is withdrawn, and ranks that end: what is under way then comes at once or not at all.
constexpr std::chrono::seconds kEnd{10};

[[nodiscard]] bool overlap(std::int64_t a, std::int64_t a_bytes, std::int64_t b,
                           std::int64_t b_bytes) noexcept {
  return a < b + b_bytes && b < a + a_bytes;
}

}  // namespace

MpiNetwork::MpiNetwork(const World& world, std::chrono::milliseconds stall_deadline, Deadline deadline)
    : rank_(world.rank), stall_(stall_deadline), index_(static_cast<std::size_t>(world.size), -1) {
  comm_.join(deadline, "start");
  std::size_t others = 0;
  for (std::int32_t rank = 0; rank < world.size; ++rank) {
    if (world.node_of(rank) != world.node) ++others;
  }
  peers_.reserve(others);
  for (std::int32_t rank = 0; rank < world.size; ++rank) {
    if (world.node_of(rank) == world.node) continue;
    index_[static_cast<std::size_t>(rank)] = static_cast<std::int32_t>(peers_.size());
    Peer& peer = peers_.emplace_back();
    peer.rank = rank;
    peer.ring = std::make_unique<std::array<Message, kRing>>();
    for (std::size_t i = 0; i < kRing; ++i) {
      check(MPI_Recv_init(&(*peer.ring)[i], static_cast<int>(sizeof(Message)), MPI_BYTE, rank, kHeaderTag,
                          comm_.get(), &peer.receives[i]),
            rank_, "MPI_Recv_init");
      check(MPI_Start(&peer.receives[i]), rank_, "MPI_Start");
    }
    requests_.push_back(peer.receives[0]);
    under_.push_back({.work = Work::header, .peer = static_cast<std::int32_t>(peers_.size()) - 1});
  }
}

MpiNetwork::~MpiNetwork() {
  // Where something failed the others may never come.
  bool orderly = !dead_ && std::uncaught_exceptions() == 0;
  if (orderly) {
    try {
      shut_down();
    } catch (...) {
      orderly = false;
    }
  }
  bool all_ended = true;
  const auto end = [&](MPI_Request& request, bool persistent) {
    if (request == MPI_REQUEST_NULL) return;
    int done = 0;
    MPI_Cancel(&request);
    for (int turn = 0; turn < 1000 && done == 0; ++turn) MPI_Test(&request, &done, MPI_STATUS_IGNORE);
    all_ended = all_ended && done != 0;
    if (done != 0 && persistent) MPI_Request_free(&request);
  };
  for (Peer& peer : peers_) {
    for (MPI_Request& request : peer.receives) end(request, true);
    int done = 0;
    MPI_Test(&peer.acknowledging, &done, MPI_STATUS_IGNORE);
    all_ended = all_ended && done != 0;
  }
  const std::size_t heads = peers_.size();
  // Sends cannot be cancelled everywhere; what is left of them here was not taken by a peer that failed.
  for (std::size_t i = heads; i < requests_.size(); ++i) all_ended = false;
  if (all_ended) return;
  // MPI may still write to or read from these.
  for (Peer& peer : peers_) {
    static_cast<void>(peer.ring.release());
    for (Entry& entry : peer.pending) static_cast<void>(entry.discarded.release());
  }
  // With the acknowledgements in it, which stay where they are.
  static_cast<void>(std::make_unique<std::vector<Peer>>(std::move(peers_)).release());
  for (auto& slot : slots_) static_cast<void>(slot.release());
}

void MpiNetwork::shut_down() {
  stall_ = std::min<std::chrono::milliseconds>(stall_, kEnd);
  for (Peer& peer : peers_) make_sure(peer);
  for (Peer& peer : peers_) {
    wait_until(peer, "end", [&] { return sent_to(peer); });
  }
  // From here on this rank sends nothing but acknowledgements, and after the first meeting of retire() not these.
  if (!comm_.retire(Clock::now() + kEnd, [this] { static_cast<void>(advance()); })) dead_ = true;
  for (Peer& peer : peers_) {
    wait_until(peer, "end", [&] {
      int done = 0;
      check(MPI_Test(&peer.acknowledging, &done, MPI_STATUS_IGNORE), rank_, "MPI_Test");
      return done != 0;
    });
  }
}

MpiNetwork::Peer& MpiNetwork::peer_of(std::int32_t rank) {
  return peers_[static_cast<std::size_t>(index_[static_cast<std::size_t>(rank)])];
}

net::MemoryName MpiNetwork::expose(std::int32_t id, std::byte* base, std::int64_t bytes) {
  const auto at = static_cast<std::size_t>(id);
  if (at >= memories_.size()) memories_.resize(at + 1);
  memories_[at] = {.base = base, .bytes = bytes, .generation = ++generations_, .names = {}};
  net::MemoryName name;
  name.words[0] = generations_;
  return name;
}

void MpiNetwork::admit(std::int32_t id, std::span<const net::MemoryName> names) {
  Memory& memory = memories_[static_cast<std::size_t>(id)];
  memory.names.clear();
  for (const net::MemoryName& name : names) memory.names.push_back(name.words[0]);
}

void MpiNetwork::withdraw(std::int32_t id) noexcept {
  Memory& memory = memories_[static_cast<std::size_t>(id)];
  const std::uint64_t generation = memory.generation;
  // Later messages find no memory; payload that is being received must come first.
  memory = {};
  const auto busy = [&] {
    return std::any_of(peers_.begin(), peers_.end(), [&](const Peer& peer) {
      return std::any_of(peer.pending.begin(), peer.pending.end(), [&](const Entry& entry) {
        return !entry.complete && entry.header.id == id && entry.header.generation == generation &&
               entry.discarded == nullptr;
      });
    });
  };
  const Deadline end = Clock::now() + kEnd;
  Idle idle;
  try {
    while (!dead_ && busy() && Clock::now() < end) {
      if (!advance()) idle();
    }
  } catch (...) {
    dead_ = true;
  }
}

template <class Done>
void MpiNetwork::wait_until(const Peer& peer, const char* phase, const Done& done) {
  if (done()) return;
  auto start = Clock::now();
  std::uint64_t acknowledged = peer.acknowledged;
  Idle idle;
  while (!done()) {
    if (advance()) {
      idle = {};
      continue;
    }
    idle();
    if (peer.acknowledged != acknowledged) {
      acknowledged = peer.acknowledged;
      start = Clock::now();
    } else if (Clock::now() - start >= stall_) {
      dead_ = true;
      throw Error(Errc::timeout,
                  fmt::format("rank {}: timed out after {} ms waiting for rank {} in {}: it takes no more "
                              "bytes",
                              rank_, milliseconds_since(start), peer.rank, phase),
                  peer.rank);
    }
  }
}

void MpiNetwork::watch(MPI_Request request, const Under& under) {
  requests_.push_back(request);
  under_.push_back(under);
}

MpiNetwork::Message* MpiNetwork::take_slot(Peer& peer) {
  if (free_slots_.empty()) {
    if (slots_.size() < kMostSlots) {
      slots_.push_back(std::make_unique<Message>());
      return slots_.back().get();
    }
    wait_until(peer, "put", [&] { return !free_slots_.empty(); });
  }
  Message* slot = free_slots_.back();
  free_slots_.pop_back();
  return slot;
}

void MpiNetwork::wait_for_room(Peer& peer) {
  wait_until(peer, "put", [&] { return peer.sent - peer.acknowledged < kWindow; });
}

void MpiNetwork::send(Peer& peer, Kind kind, std::int32_t id, std::int64_t offset, const std::byte* from,
                      std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) {
  wait_for_room(peer);
  Message* const message = take_slot(peer);
  const bool inlined = bytes <= kInline;
  const std::uint64_t generation =
      id < 0 ? 0 : memories_[static_cast<std::size_t>(id)].names[static_cast<std::size_t>(peer.rank)];
  message->header = {.kind = kind,
                     .id = id,
                     .generation = generation,
                     .offset = offset,
                     .bytes = bytes,
                     .signal_offset = signal_offset,
                     .value = value,
                     .handled = peer.handled};
  peer.told = peer.handled;
  auto length = static_cast<int>(sizeof(Header));
  if (inlined && bytes > 0) {
    std::memcpy(message->payload.data(), from, static_cast<std::size_t>(bytes));
    length += static_cast<int>(bytes);
  }
  peer.inline_bytes += static_cast<std::uint64_t>(length);
  peer.inline_then[peer.sent % peer.inline_then.size()] = peer.inline_bytes;
  ++peer.sent;
  const std::int32_t index = index_[static_cast<std::size_t>(peer.rank)];
  MPI_Request request = MPI_REQUEST_NULL;
  const auto start = kind == Kind::flush ? MPI_Issend : MPI_Isend;
  check(start(message, length, MPI_BYTE, peer.rank, kHeaderTag, comm_.get(), &request), rank_, "MPI_Isend");
  watch(request, {.work = kind == Kind::flush ? Work::flush : Work::message,
                  .peer = index,
                  .number = peer.inline_bytes,
                  .slot = message});
  if (inlined) return;
  // Synchronous: complete when the receiver takes it, so that the bytes are not left in a queue of MPI's.
  check(MPI_Issend(from, static_cast<int>(bytes), MPI_BYTE, peer.rank, kPayloadTag, comm_.get(), &request),
        rank_, "MPI_Issend");
  watch(request, {.work = Work::source, .peer = index});
}

void MpiNetwork::put(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                     std::int64_t bytes) {
  put_signal(peer, id, offset, from, bytes, -1, 0);
}

void MpiNetwork::put_signal(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                            std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) {
  Peer& to = peer_of(peer);
  const auto* source = static_cast<const std::byte*>(from);
  for (; bytes > kLargestMessage;
       bytes -= kLargestMessage, offset += kLargestMessage, source += kLargestMessage) {
    send(to, Kind::put, id, offset, source, kLargestMessage, -1, 0);
  }
  send(to, Kind::put, id, offset, source, bytes, signal_offset, value);
}

void MpiNetwork::signal(std::int32_t peer, std::int32_t id, std::int64_t signal_offset, std::uint64_t value) {
  send(peer_of(peer), Kind::put, id, 0, nullptr, 0, signal_offset, value);
}

void MpiNetwork::acknowledged(Peer& peer, std::uint64_t messages) noexcept {
  if (messages <= peer.acknowledged) return;
  peer.acknowledged = messages;
  peer.sure_bytes = std::max(peer.sure_bytes, peer.inline_then[(messages - 1) % peer.inline_then.size()]);
}

/// A message that is complete only when the peer's MPI has taken it, and with it all that were sent before.
/// That is up to MPI alone: the peer may be in a call of MPI that knows nothing of this object.
void MpiNetwork::make_sure(Peer& peer) {
  if (peer.acknowledged == peer.sent) return;
  send(peer, Kind::flush, -1, 0, nullptr, 0, -1, 0);
}

void MpiNetwork::quiet() {
  for (Peer& peer : peers_) {
    if (peer.inline_bytes - peer.sure_bytes > kSurelySent) make_sure(peer);
  }
  for (Peer& peer : peers_) {
    wait_until(peer, "put", [&] { return sent_to(peer); });
  }
}

bool MpiNetwork::sent_to(const Peer& peer) const noexcept {
  const std::int32_t index = index_[static_cast<std::size_t>(peer.rank)];
  return std::none_of(under_.begin() + static_cast<std::ptrdiff_t>(peers_.size()), under_.end(),
                      [&](const Under& one) { return one.peer == index && one.work != Work::payload; });
}

void MpiNetwork::progress() {
  if (!peers_.empty()) static_cast<void>(advance());
}

/// Result: whether anything came or went.
bool MpiNetwork::advance() {
  if (requests_.empty()) return false;
  const auto heads = static_cast<int>(peers_.size());
  done_.resize(requests_.size());
  int count = 0;
  check(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, done_.data(),
                     MPI_STATUSES_IGNORE),
        rank_, "MPI_Testsome");
  if (count == MPI_UNDEFINED) count = 0;
  if (count == 0 && !owing_) return false;
  // From the back, so that places that are still to come stay where they are.
  std::sort(done_.begin(), done_.begin() + count, std::greater<>());
  int at = 0;
  for (; at < count && done_[static_cast<std::size_t>(at)] >= heads; ++at) {
    const auto place = static_cast<std::size_t>(done_[static_cast<std::size_t>(at)]);
    const Under under = under_[place];
    requests_[place] = requests_.back();
    requests_.pop_back();
    under_[place] = under_.back();
    under_.pop_back();
    Peer& peer = peers_[static_cast<std::size_t>(under.peer)];
    switch (under.work) {
      case Work::header:
      case Work::source:
        break;
      case Work::flush:
        peer.sure_bytes = std::max(peer.sure_bytes, under.number);
        [[fallthrough]];
      case Work::message:
        free_slots_.push_back(under.slot);
        break;
      case Work::payload:
        peer.pending[under.number - peer.first_pending].complete = true;
        settle(peer);
        if (peer.held) take_headers(peer, under.peer);
        break;
    }
  }
  for (; at < count; ++at) {
    const auto index = static_cast<std::int32_t>(done_[static_cast<std::size_t>(at)]);
    take_headers(peers_[static_cast<std::size_t>(index)], index);
  }
  owing_ = false;
  for (Peer& peer : peers_) {
    if (peer.handled - peer.told >= kWindow / 4) acknowledge(peer);
  }
  return count > 0;
}

/// The header at the ring's next place is there. Takes it and those behind it that are there too.
void MpiNetwork::take_headers(Peer& peer, std::int32_t index) {
  const auto head = static_cast<std::size_t>(index);
  while (true) {
    peer.held = !handle(peer, index, (*peer.ring)[peer.next]);
    if (peer.held) {
      requests_[head] = MPI_REQUEST_NULL;
      return;
    }
    check(MPI_Start(&peer.receives[peer.next]), rank_, "MPI_Start");
    peer.next = (peer.next + 1) % kRing;
    int there = 0;
    check(MPI_Test(&peer.receives[peer.next], &there, MPI_STATUS_IGNORE), rank_, "MPI_Test");
    requests_[head] = peer.receives[peer.next];
    if (there == 0) return;
  }
}

std::byte* MpiNetwork::target(const Header& header, std::int64_t offset, std::int64_t bytes) noexcept {
  const auto id = static_cast<std::size_t>(header.id);
  if (header.id < 0 || id >= memories_.size()) return nullptr;
  const Memory& memory = memories_[id];
  if (memory.base == nullptr || memory.generation != header.generation || offset < 0 || bytes < 0 ||
      offset > memory.bytes - bytes) {
    return nullptr;
  }
  return memory.base + offset;
}

/// Result: false where the message must wait and be handled again.
bool MpiNetwork::handle(Peer& peer, std::int32_t index, const Message& message) {
  const Header& header = message.header;
  if (header.kind == Kind::acknowledge) {
    acknowledged(peer, header.handled);
    return true;
  }
  // Operations of one peer take effect in their order.
  const bool blocked =
      header.bytes > 0 && std::any_of(peer.pending.begin(), peer.pending.end(), [&](const Entry& e) {
        return !e.complete && e.header.id == header.id &&
               overlap(e.header.offset, e.header.bytes, header.offset, header.bytes);
      });
  if (blocked) return false;
  acknowledged(peer, header.handled);
  std::byte* const to = target(header, header.offset, header.bytes);
  Entry entry{.complete = true, .header = header, .discarded = nullptr};
  if (header.bytes > kInline) {
    entry.complete = false;
    std::byte* into = to;
    if (into == nullptr) {
      entry.discarded = std::make_unique<std::byte[]>(static_cast<std::size_t>(header.bytes));
      into = entry.discarded.get();
    }
    MPI_Request request = MPI_REQUEST_NULL;
    check(MPI_Irecv(into, static_cast<int>(header.bytes), MPI_BYTE, peer.rank, kPayloadTag, comm_.get(),
                    &request),
          rank_, "MPI_Irecv");
    watch(request,
          {.work = Work::payload, .peer = index, .number = peer.first_pending + peer.pending.size()});
  } else if (header.bytes > 0 && to != nullptr) {
    std::memcpy(to, message.payload.data(), static_cast<std::size_t>(header.bytes));
  }
  peer.pending.push_back(std::move(entry));
  settle(peer);
  return true;
}

void MpiNetwork::settle(Peer& peer) {
  while (!peer.pending.empty() && peer.pending.front().complete) {
    const Header& header = peer.pending.front().header;
    if (header.signal_offset >= 0) apply_signal(header);
    ++peer.handled;
    peer.pending.pop_front();
    ++peer.first_pending;
  }
}

void MpiNetwork::apply_signal(const Header& header) noexcept {
  std::byte* const word = target(header, header.signal_offset, 8);
  if (word == nullptr) return;
  std::atomic_ref(*reinterpret_cast<std::uint64_t*>(word)).store(header.value, std::memory_order_release);
}

void MpiNetwork::acknowledge(Peer& peer) {
  int done = 0;
  check(MPI_Test(&peer.acknowledging, &done, MPI_STATUS_IGNORE), rank_, "MPI_Test");
  if (done == 0) {
    owing_ = true;
    return;
  }
  peer.acknowledgement = {.kind = Kind::acknowledge, .handled = peer.handled};
  peer.told = peer.handled;
  check(MPI_Isend(&peer.acknowledgement, static_cast<int>(sizeof(Header)), MPI_BYTE, peer.rank, kHeaderTag,
                  comm_.get(), &peer.acknowledging),
        rank_, "MPI_Isend");
}

std::unique_ptr<Collectives> MpiNetwork::make_collectives(Transport& transport, std::int64_t max_bytes,
                                                          Deadline deadline) {
  return std::make_unique<MpiCollectives>(
      transport, comm_, [this] { progress(); }, max_bytes, deadline);
}

void MpiNetwork::exclude(std::span<const std::int32_t>) {
  throw Error(Errc::unavailable,
              fmt::format("rank {}: network mpi cannot go on without a rank: MPI ends the job", rank_));
}

}  // namespace shunt::mpi

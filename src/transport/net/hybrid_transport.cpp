#include "net/hybrid_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <thread>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::net {
namespace {

using namespace std::chrono_literals;

/// For what is under way at the end to leave, and for others to see that this rank ends.
constexpr auto kLeaveTime = 1000ms;
/// The same where something failed: others may never answer.
constexpr auto kLeaveTimeAfterError = 250ms;
constexpr auto kPauseOfLeave = 50us;
/// Beyond this the arithmetic of sums would overflow; no machine has it.
constexpr std::int64_t kAbsurdBytes = std::numeric_limits<std::int64_t>::max() >> 22;

/// What ranks of one machine have in common, even where they believe to be on several: they share its memory.
[[nodiscard]] std::uint64_t this_machine() {
  return std::hash<std::string>{}(boot_id());
}

[[nodiscard]] World node_world(const World& world, std::int32_t local_size) {
  return {.rank = world.local_rank, .size = local_size, .local_rank = world.local_rank, .node = 0};
}

[[nodiscard]] std::vector<std::int32_t> members_of(const World& world) {
  std::vector<std::int32_t> members;
  for (std::int32_t rank = 0; rank < world.size; ++rank) {
    if (world.node_of(rank) == world.node) members.push_back(rank);
  }
  return members;
}

}  // namespace

/// What every rank brings to the two exchanges of an allocation.
struct HybridTransport::Request {
  std::int64_t bytes = 0;
  std::int64_t available = 0;  ///< Memory of its machine, of which the lowest rank alone measures it
};
struct HybridTransport::Share {
  std::int32_t error = 0;  ///< 0, or 1 + the Errc of what failed
  std::int32_t unused = 0;
  MemoryName name;
};

HybridTransport::HybridTransport(shm::Segment& segment, Bootstrap& bootstrap,
                                 std::unique_ptr<Network> network, const World& world, const Options& options,
                                 Deadline deadline)
    : Transport(world),
      processes_(options.processes),
      bootstrap_(bootstrap),
      local_of_(static_cast<std::size_t>(world.size), -1),
      machines_(static_cast<std::size_t>(world.size)),
      network_(std::move(network)) {
  const std::vector<std::int32_t> members = members_of(world_);
  for (std::size_t index = 0; index < members.size(); ++index)
    local_of_[static_cast<std::size_t>(members[index])] = static_cast<std::int32_t>(index);
  const std::uint64_t machine = this_machine();
  bootstrap_.allgather(&machine, sizeof machine, machines_.data(), deadline, "start");
  const auto local_size = static_cast<std::int32_t>(members.size());
  shm::WaitHelper* const helper = this;
  node_ = std::make_unique<shm::ShmTransport>(segment, node_world(world_, local_size), members, world_.size,
                                              helper, options.processes, options.oversubscribed, deadline);
  control_ = std::make_unique<ControlRegion>(*node_, *network_, bootstrap_, world_, local_of_, deadline);
}

HybridTransport::~HybridTransport() {
  take_leave();
  for (std::size_t mask = 0; mask < entries_.size(); ++mask) {
    for (std::size_t at = 0; at < entries_[mask].size(); ++at) {
      if (entries_[mask][at].node_part.id >= 0)
        network_->withdraw(static_cast<std::int32_t>(mask) * kIdsPerMask + static_cast<std::int32_t>(at));
    }
  }
  control_.reset();
  // Before the memory that it writes to.
  network_.reset();
}

/// Tells the others that this rank ends, and takes what they still send until they have seen it: a connection
/// that is closed with bytes unread may lose bytes that were sent through it.
void HybridTransport::take_leave() noexcept {
  const bool failed = std::uncaught_exceptions() > 0;
  const auto kind = failed ? shm::NoticeKind::failed : shm::NoticeKind::finished;
  const Deadline end = Clock::now() + (failed ? kLeaveTimeAfterError : kLeaveTime);
  control_->leave_by(end);
  try {
    network_->fence();
    std::vector<std::uint64_t> before(static_cast<std::size_t>(world_.size));
    for (std::int32_t rank = 0; rank < world_.size; ++rank)
      before[static_cast<std::size_t>(rank)] = notice_of(rank);
    // What accuses must stay to be read: it says more than that this rank ended with an error.
    const shm::Notice last = shm::unpack_notice(node_->waiter().notice_word(world_.rank));
    if (!failed || last.kind != shm::NoticeKind::accuses) node_->waiter().publish({.kind = kind});
    control_->inquire(-1);
    const auto seen = [&](std::int32_t rank) {
      if (!is_remote(rank) || excluded(rank)) return true;
      const std::uint64_t word = notice_of(rank);
      const shm::NoticeKind now = shm::unpack_notice(word).kind;
      return word != before[static_cast<std::size_t>(rank)] || now == shm::NoticeKind::finished ||
             now == shm::NoticeKind::failed || now == shm::NoticeKind::accuses ||
             now == shm::NoticeKind::gave_up;
    };
    while (Clock::now() < end) {
      network_->progress();
      control_->answer(node_->waiter().notice_word(world_.rank));
      bool all = network_->idle();
      for (std::int32_t rank = 0; all && rank < world_.size; ++rank) all = seen(rank);
      if (all || network_->lost() >= 0) break;
      std::this_thread::sleep_for(kPauseOfLeave);
    }
  } catch (const std::exception&) {
    // Nobody is left to hear of it.
  }
}

Capabilities HybridTransport::capabilities() const noexcept {
  return {.ordered = network_->ordered(),
          .load_store = false,
          .maskable = network_->maskable(),
          .direct_put_bytes = network_->direct_put_bytes()};
}

// Memory

std::int32_t HybridTransport::first_live_of_machine(std::int32_t rank) const noexcept {
  const std::uint64_t machine = machines_[static_cast<std::size_t>(rank)];
  std::int32_t first = 0;
  while (excluded(first) || machines_[static_cast<std::size_t>(first)] != machine) ++first;
  return first;
}

void HybridTransport::check_requests(std::span<const Request> requests, const char* what) const {
  const std::int64_t bytes = requests[static_cast<std::size_t>(world_.rank)].bytes;
  std::int32_t lowest = 0;
  while (excluded(lowest)) ++lowest;
  const std::int64_t first = requests[static_cast<std::size_t>(lowest)].bytes;
  for (std::int32_t rank = lowest + 1; rank < world_.size; ++rank) {
    const std::int64_t asked = requests[static_cast<std::size_t>(rank)].bytes;
    if (excluded(rank) || asked == first) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: {}: rank {} asks for {} bytes of symmetric memory and rank {} for {}; "
                            "all ranks must ask for the same",
                            world_.rank, what, lowest, first, rank, asked));
  }
  if (bytes < 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: {}: {} bytes of symmetric memory; 0 or more are allowed", world_.rank,
                            what, bytes));
  }
  // Every process has page tables (8 bytes a page of 4 KiB) for the parts of the ranks of its node.
  const std::int64_t tables = processes_ ? bytes / 4096 * 8 * node_->world().size : 0;
  const std::int64_t each = bytes > kAbsurdBytes ? kAbsurdBytes : bytes + tables;
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    if (excluded(rank) || first_live_of_machine(rank) != rank) continue;
    const std::int64_t available = requests[static_cast<std::size_t>(rank)].available;
    std::int64_t ranks = 0;
    for (std::int32_t other = rank; other < world_.size; ++other) {
      const bool together =
          machines_[static_cast<std::size_t>(other)] == machines_[static_cast<std::size_t>(rank)];
      if (together && !excluded(other)) ++ranks;
    }
    if (available < 0 || each * ranks <= available) continue;
    throw Error(
        Errc::out_of_memory,
        fmt::format("rank {}: {} needs {} for {} ranks together ({} each, page tables included), but {} "
                    "of memory are available on the machine of rank {}",
                    world_.rank, what, format_bytes(each * ranks), ranks, format_bytes(each),
                    format_bytes(available), rank));
  }
}

SymmetricBuffer HybridTransport::allocate(std::int64_t bytes, const char* what, Deadline deadline) {
  const auto ranks = static_cast<std::size_t>(world_.size);
  const bool measures = first_live_of_machine(world_.rank) == world_.rank;
  const Request request{.bytes = bytes, .available = measures ? available_memory_bytes() : 0};
  std::vector<Request> requests(ranks);
  control_->exchange(&request, sizeof request, requests.data(), deadline, "allocate");
  check_requests(requests, what);

  // Every rank takes part in the second exchange whatever happens here, so that all end alike.
  const std::int32_t id = next_id_++;
  if (next_id_ % kIdsPerMask == 0) {
    throw Error(Errc::out_of_memory,
                fmt::format("rank {}: {}: symmetric memory was allocated {} times without a rank being "
                            "excluded; no more are allowed",
                            world_.rank, what, kIdsPerMask - 1));
  }
  Share share;
  SymmetricBuffer part;
  bool exposed = false;
  std::optional<Error> failure;
  try {
    part = node_->allocate(bytes, what, deadline);
    share.name = network_->expose(id, part.local, bytes);
    exposed = true;
  } catch (const Error& error) {
    if (error.code() == Errc::timeout || error.code() == Errc::peer_lost) throw;
    share.error = 1 + static_cast<std::int32_t>(error.code());
    failure = error;
  }
  std::vector<Share> shares(ranks);
  const auto give_back = [&] {
    if (exposed) network_->withdraw(id);
    if (part.id >= 0) node_->release(part);
  };
  try {
    control_->exchange(&share, sizeof share, shares.data(), deadline, "allocate");
  } catch (...) {
    // Others may hold the whole of it and put here, until all have excluded who is missing.
    if (exposed) {
      entry_for(id).node_part = part;
      abandoned_.push_back(id);
    } else {
      give_back();
    }
    throw;
  }
  const auto failed = [&](std::int32_t rank) {
    return !excluded(rank) && shares[static_cast<std::size_t>(rank)].error != 0;
  };
  std::int32_t bad = 0;
  while (bad < world_.size && !failed(bad)) ++bad;
  if (bad < world_.size) {
    give_back();
    if (failure.has_value()) throw *failure;
    throw Error(static_cast<Errc>(shares[static_cast<std::size_t>(bad)].error - 1),
                fmt::format("rank {}: {}: rank {} could not get its {}", world_.rank, what, bad,
                            format_bytes(bytes)));
  }
  std::vector<MemoryName> names;
  names.reserve(ranks);
  for (const Share& one : shares) names.push_back(one.name);
  network_->admit(id, names);
  entry_for(id).node_part = part;
  for (const std::int32_t old : abandoned_) {
    network_->withdraw(old);
    node_->release(entry_at(old).node_part);
  }
  abandoned_.clear();
  return {.local = part.local, .bytes = bytes, .id = id};
}

HybridTransport::Entry& HybridTransport::entry_for(std::int32_t id) {
  const auto mask = static_cast<std::size_t>(id / kIdsPerMask);
  const auto at = static_cast<std::size_t>(id % kIdsPerMask);
  if (entries_.size() <= mask) entries_.resize(mask + 1);
  if (entries_[mask].size() <= at) entries_[mask].resize(at + 1);
  return entries_[mask][at];
}

void HybridTransport::release(SymmetricBuffer& buffer) noexcept {
  if (entry_of(buffer) != nullptr) {
    if (!has_left()) {
      // The network may still read it; the next allocation gives it back.
      abandoned_.push_back(buffer.id);
    } else {
      network_->withdraw(buffer.id);
      node_->release(entry_at(buffer.id).node_part);
    }
  }
  buffer = {};
}

/// Whether all that was put has been read out of its source, after a short wait: a send from pages that are gone breaks
/// the connection it goes over.
bool HybridTransport::has_left() noexcept {
  network_->end_waits_at(Clock::now() + kLeaveTime);
  bool left = true;
  try {
    network_->quiet();
  } catch (const std::exception&) {
    left = false;
  }
  network_->end_waits_at(Deadline::max());
  return left;
}

const HybridTransport::Entry* HybridTransport::entry_of(const SymmetricBuffer& buffer) const noexcept {
  if (buffer.id < 0) return nullptr;
  const auto mask = static_cast<std::size_t>(buffer.id / kIdsPerMask);
  const auto at = static_cast<std::size_t>(buffer.id % kIdsPerMask);
  if (mask >= entries_.size() || at >= entries_[mask].size()) return nullptr;
  const Entry& entry = entries_[mask][at];
  return entry.node_part.id < 0 ? nullptr : &entry;
}

std::byte* HybridTransport::peer_pointer(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
  const Entry* entry = entry_of(buffer);
  if (entry == nullptr || peer < 0 || peer >= world_.size || is_remote(peer)) return nullptr;
  return node_->peer_pointer(entry->node_part, local_of_[static_cast<std::size_t>(peer)]);
}

// Transfers

void HybridTransport::check(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                            std::int64_t bytes) const {
  if (entry_of(buffer) != nullptr && peer >= 0 && peer < world_.size && offset >= 0 && bytes >= 0 &&
      offset <= buffer.bytes - bytes) [[likely]] {
    return;
  }
  throw Error(
      Errc::invalid_argument,
      fmt::format("rank {}: {} bytes at offset {} of rank {}, but buffer {} has {} bytes on ranks 0 to {}",
                  world_.rank, bytes, offset, peer, buffer.id, buffer.bytes, world_.size - 1));
}

void HybridTransport::check_signal(const SymmetricBuffer& buffer, std::int32_t peer,
                                   std::int64_t signal_offset) const {
  check(buffer, peer, signal_offset, 8);
  if (signal_offset % 8 == 0) [[likely]]
    return;
  throw Error(
      Errc::invalid_argument,
      fmt::format("rank {}: signal word at offset {} of rank {}; signal words lie at multiples of 8 bytes",
                  world_.rank, signal_offset, peer));
}

bool HybridTransport::has_finished(std::int32_t rank) const noexcept {
  return shm::unpack_notice(notice_of(rank)).kind == shm::NoticeKind::finished;
}

/// What a rank that has finished does not take is no error: nobody reads it. A stalled rank is accused.
template <typename Operation>
void HybridTransport::over_network(std::int32_t peer, const char* phase, const Operation& operation) {
  try {
    operation();
  } catch (const Error& error) {
    if (peer >= 0 && error.code() == Errc::peer_lost && has_finished(peer)) return;
    const bool asked_to_agree = error.code() == Errc::peer_lost && error.peer() < 0;
    if (!waits_for_room_ || asked_to_agree) throw;
    // Also where the network says that the rank is gone: others may not know yet, and would blame this one, which ends.
    if (peer >= 0 && (error.code() == Errc::timeout || error.code() == Errc::peer_lost)) {
      const std::int32_t blamed = error.peer() >= 0 ? error.peer() : peer;
      node_->waiter().publish(
          {.kind = shm::NoticeKind::accuses, .rank = blamed, .phase = shm::phase_number(phase)});
    }
    throw;
  }
}

void HybridTransport::put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                          const void* from, std::int64_t bytes) {
  check(buffer, peer, offset, bytes);
  if (excluded(peer)) return;
  if (is_remote(peer)) {
    over_network(peer, "put", [&] { network_->put(peer, buffer.id, offset, from, bytes); });
  } else {
    node_->put(entry_at(buffer.id).node_part, local_of_[static_cast<std::size_t>(peer)], offset, from, bytes);
  }
}

void HybridTransport::put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                 const void* from, std::int64_t bytes, std::int64_t signal_offset,
                                 std::uint64_t value) {
  check(buffer, peer, offset, bytes);
  check_signal(buffer, peer, signal_offset);
  if (excluded(peer)) return;
  if (is_remote(peer)) {
    over_network(peer, "put",
                 [&] { network_->put_signal(peer, buffer.id, offset, from, bytes, signal_offset, value); });
  } else {
    node_->put_signal(entry_at(buffer.id).node_part, local_of_[static_cast<std::size_t>(peer)], offset, from,
                      bytes, signal_offset, value);
  }
}

void HybridTransport::signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
                             std::uint64_t value) {
  check_signal(buffer, peer, signal_offset);
  if (excluded(peer)) return;
  if (is_remote(peer)) {
    over_network(peer, "put", [&] { network_->signal(peer, buffer.id, signal_offset, value); });
  } else {
    node_->signal(entry_at(buffer.id).node_part, local_of_[static_cast<std::size_t>(peer)], signal_offset,
                  value);
  }
}

std::uint64_t HybridTransport::wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset,
                                           std::uint64_t value, Deadline deadline, const WaitSite& site) {
  check_signal(buffer, world_.rank, signal_offset);
  return node_->waiter().wait(buffer.local + signal_offset, value, deadline, site);
}

std::uint64_t HybridTransport::poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) {
  check_signal(buffer, world_.rank, signal_offset);
  progress();
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(buffer.local + signal_offset))
      .load(std::memory_order_acquire);
}

void HybridTransport::fence() {
  over_network(-1, "put", [&] { network_->fence(); });
}

void HybridTransport::quiet() {
  over_network(-1, "quiet", [&] { network_->quiet(); });
}

std::unique_ptr<Collectives> HybridTransport::make_collectives(std::int64_t max_bytes, Deadline deadline) {
  if (auto own = network_->make_collectives(*this, max_bytes, deadline)) return own;
  return Transport::make_collectives(max_bytes, deadline);
}

void HybridTransport::exclude(std::span<const std::int32_t> ranks) {
  if (!network_->maskable()) Transport::exclude(ranks);
  std::vector<std::int32_t> here;
  for (const std::int32_t rank : ranks) {
    if (rank < 0 || rank >= world_.size || rank == world_.rank) {
      throw Error(Errc::invalid_argument,
                  fmt::format("rank {}: exclude rank {}; other ranks from 0 to {} are allowed", world_.rank,
                              rank, world_.size - 1));
    }
    if (!is_remote(rank)) here.push_back(local_of_[static_cast<std::size_t>(rank)]);
  }
  excluded_.resize(static_cast<std::size_t>(world_.size));
  for (const std::int32_t rank : ranks) {
    excluded_[static_cast<std::size_t>(rank)] = 1;
    node_->waiter().forget(rank);
  }
  // Survivors may have begun another number of allocations before they saw the loss.
  next_id_ = (next_id_ / kIdsPerMask + 1) * kIdsPerMask;
  network_->exclude(ranks);
  bootstrap_.exclude(ranks);
  control_->exclude(ranks);
  node_->exclude(here);
}

// WaitHelper

void HybridTransport::progress() {
  try {
    network_->progress();
  } catch (const Error& error) {
    // Of a rank that went without being missed; where it is missed, find_loss() says so.
    if (error.code() != Errc::peer_lost) throw;
  }
}

shm::Loss HybridTransport::find_loss() {
  const auto counts = [&](std::int32_t rank) { return rank >= 0 && !excluded(rank) && !has_finished(rank); };
  if (const std::int32_t rank = network_->lost(); counts(rank)) return {rank, "the network lost it"};
  if (const std::int32_t rank = bootstrap_.lost(); counts(rank)) return {rank, "its process ended"};
  return {};
}

std::uint64_t HybridTransport::notice_of(std::int32_t rank) const noexcept {
  if (control_ == nullptr) return 0;
  return is_remote(rank) ? control_->notice_of(rank) : node_->waiter().notice_word(rank);
}

void HybridTransport::publish(std::uint64_t notice, std::int32_t doubtful) noexcept {
  if (control_ != nullptr) control_->publish(notice, doubtful);
}

void HybridTransport::inquire(std::int32_t doubtful) noexcept {
  if (control_ != nullptr) control_->inquire(doubtful);
}

void HybridTransport::answer(std::uint64_t notice) noexcept {
  if (control_ != nullptr) control_->answer(notice);
}

}  // namespace shunt::net

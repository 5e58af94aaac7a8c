// What goes out: puts, signals and messages, and waits for room.
#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>

#include <shunt/core/error.h>

#include "ofi/ofi_network.h"

namespace shunt::ofi {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kBounceBytes = 64 * 1024;
constexpr std::int32_t kBouncePieces = 32;

}  // namespace

/// Errors: see throw_stalled(), throw_lost().
class OfiNetwork::Stall {
 public:
  /// `progress` counts what may end this wait; each time it grows, the deadline begins anew.
  Stall(OfiNetwork& network, std::int32_t awaited, const std::uint64_t& progress, Clock::time_point start)
      : network_(network), awaited_(awaited), progress_(progress), start_(start), seen_(progress) {}

  void pause() {
    network_.progress();
    const auto now = Clock::now();
    // Before anything else: what a deadline of the caller ends must end however much moves.
    if (now > network_.end_of_waits_) network_.throw_stalled(awaited_, now - start_);
    if (progress_ != seen_) {
      seen_ = progress_;
      start_ = now;
      rounds_ = 0;
      return;
    }
    if (++rounds_ < kSpins) return;
    const auto waited = now - start_;
    if (waited < kYieldTime) {
      sched_yield();
      return;
    }
    if (network_.breaker_ != nullptr && network_.breaker_->breaks_waits()) {
      throw Error(
          Errc::peer_lost,
          fmt::format("rank {}: another rank has lost one and asks who is left, while waiting for rank "
                      "{} in put",
                      network_.world_.rank, awaited_));
    }
    if (waited > network_.settings_.stall_deadline) network_.throw_stalled(awaited_, waited);
    // Another rank may have ended well; only where this one stays stuck is that the likely reason.
    const std::int32_t gone = network_.bootstrap_.lost();
    if (gone >= 0 && !network_.peer_of(gone).gone() && (gone == awaited_ || waited > kBenefitOfDoubt)) {
      network_.throw_lost(gone, awaited_, "its process or connection ended");
    }
    std::this_thread::sleep_for(kSleep);
  }

 private:
  static constexpr int kSpins = 16;
  static constexpr auto kYieldTime = 5ms;
  static constexpr auto kSleep = 100us;
  static constexpr auto kBenefitOfDoubt = 1s;

  OfiNetwork& network_;
  std::int32_t awaited_;
  const std::uint64_t& progress_;
  Clock::time_point start_;
  std::uint64_t seen_;
  int rounds_ = 0;
};
const Region* OfiNetwork::region_holding(const std::byte* from, std::int64_t bytes) const noexcept {
  for (const auto& [id, region] : regions_) {
    if (from >= region.base && from + bytes <= region.base + region.bytes) return &region;
  }
  return nullptr;
}

void OfiNetwork::check(const Peer& peer, std::int32_t rank) const {
  if (peer.lost) throw_lost(rank, rank, peer.how);
  if (!broken_.empty()) {
    throw Error(Errc::unavailable,
                fmt::format("rank {}: libfabric: provider {}: {}", world_.rank, fabric_.provider(), broken_));
  }
}

/// Result: null where the peer has come to be ignored.
OfiNetwork::Operation* OfiNetwork::take_operation(Peer& peer, std::int32_t rank, Kind kind) {
  if (free_.empty()) [[unlikely]] {
    Stall stall(*this, rank, completed_, Clock::now());
    while (free_.empty()) stall.pause();
    if (peer.ignored()) return nullptr;
  }
  Operation& operation = operations_[static_cast<std::size_t>(free_.back())];
  free_.pop_back();
  operation.peer = rank;
  operation.kind = kind;
  operation.bounce = -1;
  ++peer.pending;
  if (!peer.gone()) ++pending_;
  peer.spoken = true;
  return &operation;
}

std::int32_t OfiNetwork::take_bounce(Peer&, std::int32_t rank) {
  if (bounce_ == nullptr) {
    bounce_ = std::make_unique<std::byte[]>(static_cast<std::size_t>(kBounceBytes * kBouncePieces));
    if (fabric_.needs_local_registration()) {
      bounce_memory_ = fabric_.register_memory(bounce_.get(), kBounceBytes * kBouncePieces, FI_WRITE);
    }
    for (std::int32_t piece = 0; piece < kBouncePieces; ++piece) free_bounce_.push_back(piece);
  }
  if (free_bounce_.empty()) {
    Stall stall(*this, rank, completed_, Clock::now());
    while (free_bounce_.empty()) stall.pause();
  }
  const std::int32_t piece = free_bounce_.back();
  free_bounce_.pop_back();
  return piece;
}

void OfiNetwork::free_operation(Operation& operation) noexcept {
  Peer& peer = peer_of(operation.peer);
  --peer.pending;
  if (!peer.gone()) --pending_;
  if (operation.bounce >= 0) free_bounce_.push_back(operation.bounce);
  operation.kind = Kind::free;
  free_.push_back(static_cast<std::int32_t>(index_of(operation)));
}

/// Result: false where the peer came to be ignored meanwhile.
template <typename Call>
bool OfiNetwork::post(Peer& peer, std::int32_t rank, const Call& call) {
  ssize_t code = call();
  if (code == 0) [[likely]] {
    peer.stuck = false;
    return true;
  }
  // Calls that fail one after the other are one stall: a peer that takes nothing costs its deadline once, not once
  // for each of the calls that a rank makes while it gives up.
  // A try that may not wait is none.
  const bool waits = end_of_waits_ > Clock::now();
  if (!peer.stuck) peer.stuck_since = Clock::now();
  peer.stuck = peer.stuck || waits;
  Stall stall(*this, rank, peer.taken, peer.stuck_since);
  while (code == -FI_EAGAIN) {
    stall.pause();
    if (peer.ignored()) return false;
    check(peer, rank);
    code = call();
  }
  if (code == 0) {
    peer.stuck = false;
    return true;
  }
  lose(rank, fabric_text(code));
  check(peer, rank);
  return false;
}

void OfiNetwork::put(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                     std::int64_t bytes) {
  Peer& target = peer_of(peer);
  if (target.ignored() || bytes == 0) return;
  const net::MemoryName name = regions_.at(id).names[static_cast<std::size_t>(peer)];
  write(target, peer, name, offset, static_cast<const std::byte*>(from), bytes);
}

void OfiNetwork::put_signal(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                            std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) {
  put(peer, id, offset, from, bytes);
  signal(peer, id, signal_offset, value);
}

void OfiNetwork::signal(std::int32_t peer, std::int32_t id, std::int64_t signal_offset, std::uint64_t value) {
  Peer& target = peer_of(peer);
  if (target.ignored()) return;
  const net::MemoryName& name = regions_.at(id).names[static_cast<std::size_t>(peer)];
  if (fabric_.delivery() == Delivery::words) {
    write_word(target, peer, name, signal_offset, value);
    return;
  }
  send(target, peer,
       {.kind = MessageKind::signal,
        .source = static_cast<std::uint32_t>(world_.rank),
        .id = id,
        .generation = static_cast<std::uint32_t>(name.words[kGeneration]),
        .offset = static_cast<std::uint64_t>(signal_offset),
        .value = value,
        .writes = target.writes});
}

void OfiNetwork::write(Peer& peer, std::int32_t rank, const net::MemoryName& name, std::int64_t offset,
                       const std::byte* from, std::int64_t bytes) {
  check(peer, rank);
  const bool needs_registration = fabric_.needs_local_registration() || settings_.always_bounce;
  void* description = nullptr;
  bool bounce = false;
  if (needs_registration) {
    const Region* region = settings_.always_bounce ? nullptr : region_holding(from, bytes);
    bounce = region == nullptr;
    if (region != nullptr) {
      description = fi_mr_desc(region->memory.get());
      if (region->alias.base() != nullptr) from = region->alias.base() + (from - region->base);
    }
  }
  const bool counted = fabric_.delivery() == Delivery::counted;
  std::uint64_t flags = FI_COMPLETION;
  if (counted) flags |= FI_REMOTE_CQ_DATA;
  if (!fabric_.writes_in_order()) flags |= FI_DELIVERY_COMPLETE;  // What fence() waits for
  if (bounce && bytes <= fabric_.inject_bytes() && fabric_.writes_in_order()) {
    flags |= FI_INJECT;
    bounce = false;
  }
  const std::int64_t most =
      bounce ? std::min(kBounceBytes, fabric_.max_write_bytes()) : fabric_.max_write_bytes();
  for (std::int64_t done = 0; done < bytes;) {
    const std::int64_t piece = std::min(most, bytes - done);
    const std::byte* source = from + done;
    // The operation first: it gives a piece of bounce memory back when it ends, however it ends.
    Operation* operation = take_operation(peer, rank, Kind::write);
    if (operation == nullptr) return;
    if (bounce) {
      try {
        operation->bounce = take_bounce(peer, rank);
      } catch (...) {
        free_operation(*operation);
        throw;
      }
      std::byte* copy = bounce_.get() + kBounceBytes * operation->bounce;
      std::memcpy(copy, source, static_cast<std::size_t>(piece));
      source = copy;
      description = bounce_memory_ ? fi_mr_desc(bounce_memory_.get()) : nullptr;
    }
    const iovec local{.iov_base = const_cast<std::byte*>(source), .iov_len = static_cast<std::size_t>(piece)};
    const fi_rma_iov remote{.addr = name.words[kAddress] + static_cast<std::uint64_t>(offset + done),
                            .len = static_cast<std::size_t>(piece),
                            .key = name.words[kKey]};
    const fi_msg_rma message{.msg_iov = &local,
                             .desc = &description,
                             .iov_count = 1,
                             .addr = peer.address,
                             .rma_iov = &remote,
                             .rma_iov_count = 1,
                             .context = operation,
                             .data = static_cast<std::uint64_t>(world_.rank)};
    bool posted = false;
    try {
      posted = post(peer, rank, [&] { return fi_writemsg(fabric_.endpoint(), &message, flags); });
    } catch (...) {
      free_operation(*operation);
      throw;
    }
    if (!posted) {
      free_operation(*operation);
      return;
    }
    ++peer.writes;
    done += piece;
  }
}

void OfiNetwork::write_word(Peer& peer, std::int32_t rank, const net::MemoryName& name, std::int64_t offset,
                            std::uint64_t value) {
  check(peer, rank);
  Operation* operation = take_operation(peer, rank, Kind::message);
  if (operation == nullptr) return;
  std::byte* word = slot(index_of(*operation));
  std::memcpy(word, &value, sizeof value);
  void* description = slots_memory_ ? fi_mr_desc(slots_memory_.get()) : nullptr;
  const iovec local{.iov_base = word, .iov_len = sizeof value};
  const fi_rma_iov remote{.addr = name.words[kAddress] + static_cast<std::uint64_t>(offset),
                          .len = sizeof value,
                          .key = name.words[kKey]};
  const fi_msg_rma message{.msg_iov = &local,
                           .desc = &description,
                           .iov_count = 1,
                           .addr = peer.address,
                           .rma_iov = &remote,
                           .rma_iov_count = 1,
                           .context = operation,
                           .data = 0};
  const bool fits = fabric_.inject_bytes() >= static_cast<std::int64_t>(sizeof value);
  const std::uint64_t flags = FI_COMPLETION | (fits ? FI_INJECT : 0);
  bool posted = false;
  try {
    posted = post(peer, rank, [&] { return fi_writemsg(fabric_.endpoint(), &message, flags); });
  } catch (...) {
    free_operation(*operation);
    throw;
  }
  if (!posted) free_operation(*operation);
}

ssize_t OfiNetwork::try_send(Operation& operation, const Message& content) noexcept {
  static_assert(sizeof(Message) <= kSlotBytes);
  std::byte* bytes = slot(index_of(operation));
  std::memcpy(bytes, &content, sizeof content);
  void* description = slots_memory_ ? fi_mr_desc(slots_memory_.get()) : nullptr;
  const iovec local{.iov_base = bytes, .iov_len = sizeof content};
  const fi_msg message{.msg_iov = &local,
                       .desc = &description,
                       .iov_count = 1,
                       .addr = peer_of(operation.peer).address,
                       .context = &operation,
                       .data = 0};
  // Not fi_inject(), which gives no completion for quiet() to wait for.
  const bool fits = fabric_.inject_bytes() >= static_cast<std::int64_t>(sizeof content);
  return fi_sendmsg(fabric_.endpoint(), &message, FI_COMPLETION | (fits ? FI_INJECT : 0));
}

void OfiNetwork::send(Peer& peer, std::int32_t rank, const Message& content) {
  check(peer, rank);
  Operation* operation = take_operation(peer, rank, Kind::message);
  if (operation == nullptr) return;
  bool posted = false;
  try {
    posted = post(peer, rank, [&] { return try_send(*operation, content); });
  } catch (...) {
    free_operation(*operation);
    throw;
  }
  if (!posted) free_operation(*operation);
}

void OfiNetwork::send_outbox() noexcept {
  std::erase_if(outbox_, [&](const std::pair<std::int32_t, Message>& entry) {
    const auto& [rank, message] = entry;
    Peer& peer = peer_of(rank);
    if (peer.gone()) return true;
    if (free_.empty()) return false;
    Operation& operation = *take_operation(peer, rank, Kind::message);
    const ssize_t code = try_send(operation, message);
    if (code == 0) return true;
    free_operation(operation);
    return code != -FI_EAGAIN;
  });
}

void OfiNetwork::drain() {
  if (pending_ == 0) return;
  progress();
  while (pending_ > 0) {
    std::int32_t awaited = 0;
    while (peer_of(awaited).pending == 0 || peer_of(awaited).gone()) ++awaited;
    const Peer& peer = peer_of(awaited);
    Stall stall(*this, awaited, completed_, Clock::now());
    while (peer.pending > 0 && !peer.gone()) stall.pause();
  }
}

void OfiNetwork::fence() {
  // Signals are ordered by their delivery; writes where the provider does not keep their order are not.
  if (!fabric_.writes_in_order()) drain();
}

void OfiNetwork::quiet() {
  drain();
}

void OfiNetwork::throw_stalled(std::int32_t rank, Clock::duration waited) const {
  throw Error(
      Errc::timeout,
      fmt::format("rank {}: timed out after {} ms waiting for rank {} in put (provider {})", world_.rank,
                  std::chrono::round<std::chrono::milliseconds>(waited).count(), rank, fabric_.provider()),
      rank);
}

void OfiNetwork::throw_lost(std::int32_t rank, std::int32_t awaited, const std::string& how) const {
  throw Error(Errc::peer_lost,
              fmt::format("rank {}: lost rank {} ({}: {}) while waiting for rank {} in put", world_.rank,
                          rank, fabric_.provider(), how, awaited),
              rank);
}

}  // namespace shunt::ofi

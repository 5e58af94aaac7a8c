// What comes in: completions of own operations, messages and arrivals of peers.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "ofi/ofi_network.h"

namespace shunt::ofi {

void OfiNetwork::post_receives() noexcept {
  while (!unposted_.empty()) {
    const auto index = static_cast<std::size_t>(unposted_.back());
    const ssize_t code = fi_recv(fabric_.endpoint(), slot(index), sizeof(Message),
                                 slots_memory_ ? fi_mr_desc(slots_memory_.get()) : nullptr, FI_ADDR_UNSPEC,
                                 &operations_[index].context);
    if (code == -FI_EAGAIN) return;
    if (code != 0) {
      broken_ = "receive: " + fabric_text(code);
      return;
    }
    unposted_.pop_back();
  }
}

void OfiNetwork::progress() {
  std::array<fi_cq_data_entry, 32> events;
  // A bound, since peers may send without end and the caller has a deadline to look at.
  for (int round = 0; round < 8; ++round) {
    const ssize_t count = fi_cq_read(fabric_.queue(), events.data(), events.size());
    if (count == -FI_EAGAIN) break;
    if (count == -FI_EAVAIL) {
      take_failure();
      continue;
    }
    if (count < 0) {
      broken_ = "completion queue: " + fabric_text(count);
      break;
    }
    for (std::size_t index = 0; index < static_cast<std::size_t>(count); ++index) take_event(events[index]);
    if (static_cast<std::size_t>(count) < events.size()) break;
  }
  if (!unposted_.empty()) post_receives();
  if (!outbox_.empty()) send_outbox();
}

void OfiNetwork::take_event(const fi_cq_data_entry& event) noexcept {
  if ((event.flags & FI_REMOTE_CQ_DATA) != 0) {
    take_arrival(event.data);
    // Only where the mode is on did the data use up one of our receives.
    if ((fabric_.info().mode & FI_RX_CQ_DATA) == 0 || event.op_context == nullptr) return;
    const auto& used = *static_cast<Operation*>(event.op_context);
    unposted_.push_back(static_cast<std::int32_t>(index_of(used)));
    return;
  }
  if (event.op_context == nullptr) return;
  auto& operation = *static_cast<Operation*>(event.op_context);
  if (operation.kind != Kind::receive) {
    if (operation.kind == Kind::free) return;
    ++peer_of(operation.peer).taken;
    free_operation(operation);
    ++completed_;
    return;
  }
  Message message;
  std::memcpy(&message, slot(index_of(operation)), sizeof message);
  unposted_.push_back(static_cast<std::int32_t>(index_of(operation)));
  if (event.len == sizeof message) take_message(message);
}

void OfiNetwork::take_failure() noexcept {
  fi_cq_err_entry failure{};
  if (fi_cq_readerr(fabric_.queue(), &failure, 0) < 0) return;
  if (failure.op_context == nullptr) {
    if (failure.err != FI_ECANCELED) broken_ = fabric_text(failure.err);
    return;
  }
  auto& operation = *static_cast<Operation*>(failure.op_context);
  if (operation.kind == Kind::receive) {
    // A peer that ends takes the receives of its connection with it; the endpoint's others remain.
    unposted_.push_back(static_cast<std::int32_t>(index_of(operation)));
    return;
  }
  if (operation.kind == Kind::free) return;
  const std::int32_t rank = operation.peer;
  free_operation(operation);
  ++completed_;
  if (failure.err == FI_ECANCELED && peer_of(rank).ignored()) return;
  lose(rank, fabric_text(failure.err));
}

void OfiNetwork::take_message(const Message& message) noexcept {
  if (message.source >= peers_.size()) return;
  Peer& source = peers_[message.source];
  if (source.excluded) return;
  source.spoken = true;
  if (fabric_.delivery() == Delivery::counted && source.arrived < message.writes) {
    source.waiting.push_back(message);
    return;
  }
  obey(message);
}

void OfiNetwork::take_arrival(std::uint64_t rank) noexcept {
  if (rank >= peers_.size()) return;
  Peer& source = peers_[rank];
  ++source.arrived;
  source.spoken = true;
  if (source.waiting.empty() || source.excluded) return;
  std::erase_if(source.waiting, [&](const Message& message) {
    if (source.arrived < message.writes) return false;
    obey(message);
    return true;
  });
}

void OfiNetwork::obey(const Message& message) noexcept {
  Peer& source = peers_[message.source];
  switch (message.kind) {
    case MessageKind::hello:
      source.greeted = true;
      if (message.source < static_cast<std::uint32_t>(world_.rank)) {
        queue(static_cast<std::int32_t>(message.source), MessageKind::hello, -1, 0);
      }
      return;
    case MessageKind::signal:
      apply(message);
      return;
    case MessageKind::withdraw:
      for (auto& [id, region] : regions_) {
        if (region.generation == message.generation) region.withdrawn[message.source] = 1;
      }
      for (Region& region : retired_) {
        if (region.generation == message.generation) region.withdrawn[message.source] = 1;
      }
      break;
    case MessageKind::leave:
      set_gone(source, &Peer::left);
      break;
  }
  close_retired();
}

void OfiNetwork::close_retired() noexcept {
  std::erase_if(retired_, [&](const Region& region) {
    for (std::size_t rank = 0; rank < peers_.size(); ++rank) {
      const Peer& peer = peers_[rank];
      const bool may_put = is_remote(static_cast<std::int32_t>(rank)) && !peer.gone();
      if (may_put && region.withdrawn[rank] == 0) return false;
    }
    return true;
  });
}

void OfiNetwork::apply(const Message& message) noexcept {
  const auto found = regions_.find(message.id);
  // Memory that has been withdrawn, or other memory under its number.
  if (found == regions_.end() || found->second.generation != message.generation) return;
  const Region& region = found->second;
  if (message.offset % 8 != 0 || region.bytes < 8 ||
      message.offset > static_cast<std::uint64_t>(region.bytes - 8)) {
    return;
  }
  const std::atomic_ref word(*reinterpret_cast<std::uint64_t*>(region.base + message.offset));
  // Messages may overtake each other where the provider keeps no order; a word only grows.
  const bool late = !fabric_.messages_in_order() &&
                    static_cast<std::int64_t>(message.value - word.load(std::memory_order_relaxed)) < 0;
  if (!late) word.store(message.value, std::memory_order_release);
}

void OfiNetwork::lose(std::int32_t rank, std::string how) noexcept {
  Peer& peer = peer_of(rank);
  if (peer.gone()) return;
  set_gone(peer, &Peer::lost);
  peer.how = std::move(how);
}

void OfiNetwork::set_gone(Peer& peer, bool Peer::*why) noexcept {
  if (!peer.gone()) pending_ -= peer.pending;
  peer.*why = true;
}

}  // namespace shunt::ofi

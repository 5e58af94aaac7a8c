#include "ofi/ofi_network.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include <shunt/core/error.h>

#include "ofi/host_address.h"

namespace shunt::ofi {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kMostSends = 1024;
constexpr std::size_t kReceives = 256;
constexpr std::size_t kSlotBytes = 64;
constexpr std::int64_t kBounceBytes = 64 * 1024;
constexpr std::int32_t kBouncePieces = 32;

/// Names in MemoryName::words
constexpr std::size_t kAddress = 0;
constexpr std::size_t kKey = 1;
constexpr std::size_t kGeneration = 2;

/// What ranks tell each other at the start.
struct Greeting {
  std::array<char, 64> provider{};
  std::int32_t delivery = 0;
  std::int32_t address_bytes = 0;
  std::array<char, 192> address{};
};

[[nodiscard]] std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? std::string{} : std::string(text);
}

/// Where all ranks meet: SHUNT_OFI_INTERFACE; else where the bootstrap met; else loopback if all ranks are in
/// one network namespace; else what looks reachable.
[[nodiscard]] std::string bind_address(Bootstrap& bootstrap, const World& world, const Settings& settings,
                                       Deadline deadline) {
  const std::uint64_t mine = network_identity();
  std::vector<std::uint64_t> all(static_cast<std::size_t>(bootstrap.size()));
  bootstrap.allgather(&mine, sizeof mine, all.data(), deadline, "start of the fabric");
  const std::string interface = entry_of_list(settings.interfaces, world.local_rank);
  if (!interface.empty()) return address_of_interface(interface);
  if (std::string address = bootstrap.local_address(); !address.empty()) return address;
  const bool together = std::all_of(all.begin(), all.end(), [&](std::uint64_t one) { return one == mine; });
  return together ? "127.0.0.1" : first_routable_address();
}

[[nodiscard]] FabricRequest request_of(Bootstrap& bootstrap, const World& world, const Settings& settings,
                                       Deadline deadline) {
  return {.provider = settings.provider,
          .node = bind_address(bootstrap, world, settings, deadline),
          .domain = entry_of_list(settings.domains, world.local_rank),
          .local_rank = world.local_rank,
          .delivery = settings.delivery};
}

}  // namespace

Settings settings_of(const LaunchOptions& options) {
  Settings settings{.provider = options.provider,
                    .delivery = {},
                    .domains = variable("SHUNT_OFI_DOMAIN"),
                    .interfaces = variable("SHUNT_OFI_INTERFACE"),
                    .stall_deadline = options.stall_deadline};
  const std::string delivery = variable("SHUNT_OFI_DELIVERY");
  if (delivery.empty()) return settings;
  for (const Delivery one : {Delivery::words, Delivery::messages, Delivery::counted}) {
    if (delivery == delivery_name(one)) settings.delivery = one;
  }
  if (!settings.delivery) {
    throw Error(Errc::invalid_argument,
                fmt::format("SHUNT_OFI_DELIVERY is '{}'; words, messages and counted are allowed", delivery));
  }
  return settings;
}

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

OfiNetwork::OfiNetwork(Bootstrap& bootstrap, const World& world, const Settings& settings, Deadline deadline)
    : bootstrap_(bootstrap),
      world_(world),
      settings_(settings),
      fabric_(request_of(bootstrap, world, settings, deadline)),
      peers_(static_cast<std::size_t>(world.size)) {
  const std::size_t sends = std::clamp<std::size_t>(fabric_.info().tx_attr->size, 1, kMostSends);
  const std::size_t receives = std::clamp<std::size_t>(fabric_.info().rx_attr->size, 1, kReceives);
  operations_.resize(sends + receives);
  slots_ = std::make_unique<std::byte[]>(operations_.size() * kSlotBytes);
  if (fabric_.needs_local_registration()) {
    slots_memory_ =
        fabric_.register_memory(slots_.get(), static_cast<std::int64_t>(operations_.size() * kSlotBytes),
                                FI_SEND | FI_RECV | FI_WRITE);
  }
  for (std::size_t index = sends; index-- > 0;) free_.push_back(static_cast<std::int32_t>(index));
  for (std::size_t index = sends; index < operations_.size(); ++index) {
    operations_[index].kind = Kind::receive;
    unposted_.push_back(static_cast<std::int32_t>(index));
  }
  post_receives();
  exchange_addresses(bootstrap, deadline);
  connect(deadline);
}

void OfiNetwork::exchange_addresses(Bootstrap& bootstrap, Deadline deadline) {
  const std::string address = fabric_.address();
  Greeting mine;
  if (address.size() > mine.address.size()) {
    throw Error(Errc::unavailable, fmt::format("libfabric: provider {} has addresses of {} bytes; {} fit",
                                               fabric_.provider(), address.size(), mine.address.size()));
  }
  fabric_.provider().copy(mine.provider.data(), mine.provider.size() - 1);
  mine.delivery = static_cast<std::int32_t>(fabric_.delivery());
  mine.address_bytes = static_cast<std::int32_t>(address.size());
  address.copy(mine.address.data(), address.size());
  std::vector<Greeting> all(peers_.size());
  bootstrap.allgather(&mine, sizeof mine, all.data(), deadline, "start of the fabric");
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const Greeting& other = all[rank];
    if (other.provider != mine.provider || other.delivery != mine.delivery) {
      throw Error(
          Errc::unavailable,
          fmt::format("rank {}: libfabric's provider is {} with delivery {} here and {} with delivery "
                      "{} on rank {}; name one provider that every rank has",
                      world_.rank, mine.provider.data(), delivery_name(fabric_.delivery()),
                      other.provider.data(), delivery_name(static_cast<Delivery>(other.delivery)), rank));
    }
    if (other.address_bytes < 1 || other.address_bytes > static_cast<std::int32_t>(other.address.size())) {
      throw Error(Errc::unavailable,
                  fmt::format("rank {}: libfabric: rank {} says that its address has {} bytes; 1 to {} are "
                              "allowed",
                              world_.rank, rank, other.address_bytes, other.address.size()),
                  static_cast<std::int32_t>(rank));
    }
    peers_[rank].address =
        fabric_.insert({other.address.data(), static_cast<std::size_t>(other.address_bytes)});
  }
}

/// Providers connect when something is first sent, and the peer must take part in that. So everybody does it
/// here: later a put to a rank that makes no calls waits only where there is no more room on the way.
void OfiNetwork::connect(Deadline deadline) {
  // The lower rank speaks first, so that no two ranks connect to each other at the same time.
  for (std::int32_t rank = world_.rank + 1; rank < world_.size; ++rank) {
    if (is_remote(rank)) queue(rank, MessageKind::hello, -1, 0);
  }
  const auto start = Clock::now();
  for (int round = 0;; ++round) {
    progress();
    std::int32_t awaited = -1;
    for (std::int32_t rank = 0; rank < world_.size && awaited < 0; ++rank) {
      const Peer& peer = peer_of(rank);
      if (is_remote(rank) && !(peer.greeted && peer.pending == 0)) awaited = rank;
      check(peer, rank);
    }
    if (awaited < 0 && outbox_.empty()) return;
    if (round < 100) continue;
    const auto now = Clock::now();
    if (now > deadline) {
      throw Error(Errc::timeout,
                  fmt::format("rank {}: timed out after {} ms waiting for rank {} in start (provider {})",
                              world_.rank, std::chrono::round<std::chrono::milliseconds>(now - start).count(),
                              awaited, fabric_.provider()),
                  awaited);
    }
    if (const std::int32_t gone = bootstrap_.lost(); gone >= 0) {
      throw Error(
          Errc::peer_lost,
          fmt::format("rank {}: lost rank {} (its process or connection ended) while waiting for rank "
                      "{} in start",
                      world_.rank, gone, awaited),
          gone);
    }
    std::this_thread::sleep_for(50us);
  }
}

void OfiNetwork::queue(std::int32_t rank, MessageKind kind, std::int32_t id,
                       std::uint32_t generation) noexcept {
  outbox_.emplace_back(rank, Message{.kind = kind,
                                     .source = static_cast<std::uint32_t>(world_.rank),
                                     .id = id,
                                     .generation = generation,
                                     .writes = peer_of(rank).writes});
}

OfiNetwork::~OfiNetwork() {
  try {
    for (std::int32_t rank = 0; rank < world_.size; ++rank) {
      const Peer& peer = peer_of(rank);
      if (!peer.spoken || peer.gone()) continue;
      queue(rank, MessageKind::leave, -1, 0);
    }
    const auto last_words = Clock::now() + 300ms;
    const auto all_done = [&] {
      return std::all_of(peers_.begin(), peers_.end(),
                         [](const Peer& peer) { return !peer.spoken || peer.gone(); });
    };
    while (Clock::now() < last_words) {
      progress();
      // A peer that left has read everything that it waited for, and this rank's farewell may still be here.
      if (all_done() && pending_ == 0 && outbox_.empty()) break;
      std::this_thread::sleep_for(50us);
    }
  } catch (...) {  // The end of a rank reports nothing; its peers have their deadlines.
  }
  fabric_.close_endpoint();
}

std::int64_t OfiNetwork::direct_put_bytes() const noexcept {
  // A write costs a system call and a copy over sockets, and a work request on a NIC.
  return binds_to_host_address(fabric_.provider()) || fabric_.provider() == "shm" ? 32 * 1024 : 2 * 1024;
}

net::MemoryName OfiNetwork::expose(std::int32_t id, std::byte* base, std::int64_t bytes) {
  Region region;
  region.id = id;
  region.base = base;
  region.bytes = bytes;
  region.generation = next_generation_++;
  region.alias = Alias(base, bytes);
  std::byte* registered = region.alias.base() != nullptr ? region.alias.base() : base;
  region.memory = fabric_.register_memory(registered, bytes, FI_REMOTE_WRITE | FI_WRITE);
  region.withdrawn.resize(peers_.size());
  net::MemoryName name;
  name.words[kAddress] = fabric_.has_mode(FI_MR_VIRT_ADDR)
                             ? static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(registered))
                             : 0;
  name.words[kKey] = region.memory ? fi_mr_key(region.memory.get()) : 0;
  name.words[kGeneration] = region.generation;
  regions_[id] = std::move(region);
  return name;
}

void OfiNetwork::admit(std::int32_t id, std::span<const net::MemoryName> names) {
  regions_[id].names.assign(names.begin(), names.end());
}

void OfiNetwork::withdraw(std::int32_t id) noexcept {
  const auto found = regions_.find(id);
  if (found == regions_.end()) return;
  Region region = std::move(found->second);
  regions_.erase(found);
  for (std::size_t rank = 0; rank < region.names.size(); ++rank) {
    const Peer& peer = peers_[rank];
    if (!is_remote(static_cast<std::int32_t>(rank)) || peer.gone()) continue;
    queue(static_cast<std::int32_t>(rank), MessageKind::withdraw, id,
          static_cast<std::uint32_t>(region.names[rank].words[kGeneration]));
  }
  // Nobody knew memory that was never admitted.
  if (region.alias.base() != nullptr && !region.names.empty()) retired_.push_back(std::move(region));
  close_retired();
  send_outbox();
}

const Region* OfiNetwork::region_holding(const std::byte* from, std::int64_t bytes) const noexcept {
  for (const auto& [id, region] : regions_) {
    if (from >= region.base && from + bytes <= region.base + region.bytes) return &region;
  }
  return nullptr;
}

std::byte* OfiNetwork::slot(std::size_t index) const noexcept {
  return slots_.get() + index * kSlotBytes;
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
  if (!peer.stuck) peer.stuck_since = Clock::now();
  peer.stuck = true;
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

std::int32_t OfiNetwork::lost() noexcept {
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    const Peer& peer = peer_of(rank);
    if (peer.lost && !peer.ignored()) return rank;
  }
  return -1;
}

void OfiNetwork::exclude(std::span<const std::int32_t> ranks) {
  for (const std::int32_t rank : ranks) {
    Peer& peer = peer_of(rank);
    if (peer.excluded) continue;
    set_gone(peer, &Peer::excluded);
    peer.waiting.clear();
    fabric_.remove(peer.address);
  }
  close_retired();
}

void OfiNetwork::end_waits_at(Deadline end) noexcept {
  end_of_waits_ = end;
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

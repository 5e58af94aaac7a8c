#include "ofi/ofi_network.h"

#include <fmt/format.h>

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

std::byte* OfiNetwork::slot(std::size_t index) const noexcept {
  return slots_.get() + index * kSlotBytes;
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

}  // namespace shunt::ofi

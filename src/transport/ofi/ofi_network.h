#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <shunt/transport/launch.h>

#include "bootstrap.h"
#include "net/network.h"
#include "ofi/fabric.h"
#include "ofi/region.h"

namespace shunt::ofi {

/// What the options and these environment variables decide:
///   SHUNT_OFI_DELIVERY   words, messages or counted: how signals follow payload; else the provider decides
///   SHUNT_OFI_DOMAIN     NICs by libfabric's names, separated by commas: local rank i uses entry i mod n (its
///                        rail). Without it, i mod n of those that the provider offers, in its order.
///   SHUNT_OFI_INTERFACE  network interfaces, likewise, for providers over IP addresses
struct Settings {
  std::string provider{};
  std::optional<Delivery> delivery{};
  std::string domains{};
  std::string interfaces{};
  std::chrono::milliseconds stall_deadline{30'000};
  /// Payload outside exposed memory goes through registered memory of this object even where the provider
  /// does not ask for it; for tests.
  bool always_bounce = false;
};
/// Errors: Errc::invalid_argument naming a variable and what is allowed.
[[nodiscard]] Settings settings_of(const LaunchOptions& options);

/// net::Network over one reliable-datagram endpoint of libfabric for each rank.
/// Progress: manual. Puts of big messages move in this object's calls only (tcp), or in the NIC (verbs, efa).
/// End:      the destructor tells the peers it has spoken with and stays some tenths of a second for their last
///           words, so that their puts to a rank that has ended are no errors.
class OfiNetwork final : public net::Network {
 public:
  /// Collective.
  OfiNetwork(Bootstrap& bootstrap, const World& world, const Settings& settings, Deadline deadline);
  ~OfiNetwork() override;
  OfiNetwork(const OfiNetwork&) = delete;
  OfiNetwork& operator=(const OfiNetwork&) = delete;

  [[nodiscard]] std::string_view name() const noexcept override { return "ofi"; }
  [[nodiscard]] std::string_view provider() const noexcept override { return fabric_.provider(); }
  [[nodiscard]] bool ordered() const noexcept override {
    return fabric_.delivery() != Delivery::counted && fabric_.writes_in_order();
  }
  [[nodiscard]] std::int64_t direct_put_bytes() const noexcept override;
  [[nodiscard]] bool maskable() const noexcept override { return true; }
  [[nodiscard]] const Fabric& fabric() const noexcept { return fabric_; }

  net::MemoryName expose(std::int32_t id, std::byte* base, std::int64_t bytes) override;
  void admit(std::int32_t id, std::span<const net::MemoryName> names) override;
  void withdraw(std::int32_t id) noexcept override;

  void put(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
           std::int64_t bytes) override;
  void put_signal(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override;
  void signal(std::int32_t peer, std::int32_t id, std::int64_t signal_offset, std::uint64_t value) override;
  void fence() override;
  void quiet() override;
  void progress() override;
  [[nodiscard]] bool idle() noexcept override { return pending_ == 0 && outbox_.empty(); }
  [[nodiscard]] std::int32_t lost() noexcept override;
  void exclude(std::span<const std::int32_t> ranks) override;
  void end_waits_at(Deadline end) noexcept override;
  void set_wait_breaker(WaitBreaker* breaker) noexcept override { breaker_ = breaker; }

 private:
  enum class Kind : std::uint8_t { free, write, message, receive };

  static constexpr std::size_t kSlotBytes = 64;

  /// One call that libfabric has not completed. It knows it by the address of `context`, the first member.
  struct Operation {
    fi_context2 context{};
    std::int32_t peer = -1;
    Kind kind = Kind::free;
    std::int32_t bounce = -1;  ///< Piece of bounce memory that it reads
  };

  enum class MessageKind : std::uint32_t {
    hello,
    signal,
    withdraw,  ///< The source puts to this memory no more
    leave,     ///< The source ends
  };

  /// Two-sided messages, between hosts of one byte order.
  struct Message {
    MessageKind kind = MessageKind::signal;
    std::uint32_t source = 0;
    std::int32_t id = -1;
    std::uint32_t generation = 0;  ///< Of the memory, as its name said
    std::uint64_t offset = 0;
    std::uint64_t value = 0;
    std::uint64_t writes = 0;  ///< Counted delivery: writes to this peer before it
  };

  struct Peer {
    fi_addr_t address = FI_ADDR_UNSPEC;
    std::int64_t pending = 0;   ///< Operations towards it
    std::uint64_t writes = 0;   ///< Issued to it
    std::uint64_t arrived = 0;  ///< Writes from it, by their immediate data
    std::uint64_t taken = 0;    ///< Operations that have ended well
    Clock::time_point stuck_since{};
    bool stuck = false;            ///< The last call towards it found no room, first at stuck_since
    std::vector<Message> waiting;  ///< Signals from it whose payload has not all arrived
    bool greeted = false;          ///< Its hello has come
    bool spoken = false;           ///< Something went to it or came from it
    bool excluded = false;
    bool left = false;  ///< It said that it ends; puts to it are dropped
    bool lost = false;
    std::string how;  ///< lost: what libfabric said
    [[nodiscard]] bool ignored() const noexcept {
      return excluded || left;
    }                                                                       ///< What is put to it is dropped
    [[nodiscard]] bool gone() const noexcept { return ignored() || lost; }  ///< Not waited for
  };

  void exchange_addresses(Bootstrap& bootstrap, Deadline deadline);
  void connect(Deadline deadline);
  void queue(std::int32_t rank, MessageKind kind, std::int32_t id, std::uint32_t generation) noexcept;
  void write(Peer& peer, std::int32_t rank, const net::MemoryName& name, std::int64_t offset,
             const std::byte* from, std::int64_t bytes);
  void write_word(Peer& peer, std::int32_t rank, const net::MemoryName& name, std::int64_t offset,
                  std::uint64_t value);
  void send(Peer& peer, std::int32_t rank, const Message& content);
  template <typename Call>
  bool post(Peer& peer, std::int32_t rank, const Call& call);
  Operation* take_operation(Peer& peer, std::int32_t rank, Kind kind);
  std::int32_t take_bounce(Peer& peer, std::int32_t rank);
  void free_operation(Operation& operation) noexcept;
  void drain();

  void post_receives() noexcept;
  void take_event(const fi_cq_data_entry& event) noexcept;
  void take_failure() noexcept;
  void take_message(const Message& message) noexcept;
  void take_arrival(std::uint64_t rank) noexcept;
  void obey(const Message& message) noexcept;
  void apply(const Message& message) noexcept;
  void close_retired() noexcept;
  void send_outbox() noexcept;
  ssize_t try_send(Operation& operation, const Message& content) noexcept;
  void lose(std::int32_t rank, std::string how) noexcept;
  void set_gone(Peer& peer, bool Peer::*why) noexcept;
  void check(const Peer& peer, std::int32_t rank) const;
  [[noreturn]] void throw_stalled(std::int32_t rank, Clock::duration waited) const;
  [[noreturn]] void throw_lost(std::int32_t rank, std::int32_t awaited, const std::string& how) const;

  /// What a wait does between two looks: moves on, then yields, later sleeps and asks for lost ranks.
  class Stall;

  [[nodiscard]] const Region* region_holding(const std::byte* from, std::int64_t bytes) const noexcept;
  [[nodiscard]] std::size_t index_of(const Operation& operation) const noexcept {
    return static_cast<std::size_t>(&operation - operations_.data());
  }
  /// Only these put here: ranks of one node share memory.
  [[nodiscard]] bool is_remote(std::int32_t rank) const noexcept {
    return world_.node_of(rank) != world_.node_of(world_.rank);
  }
  [[nodiscard]] std::byte* slot(std::size_t index) const noexcept;
  [[nodiscard]] Peer& peer_of(std::int32_t rank) { return peers_[static_cast<std::size_t>(rank)]; }

  Bootstrap& bootstrap_;
  World world_;
  Settings settings_;
  // Before the endpoint, which may touch them until it is closed.
  std::vector<Operation> operations_;    ///< Sends first, then receives; never moves
  std::unique_ptr<std::byte[]> slots_;   ///< A message's place for every operation
  std::unique_ptr<std::byte[]> bounce_;  ///< Made when first needed
  Fabric fabric_;
  std::vector<Peer> peers_;
  std::unordered_map<std::int32_t, Region> regions_;
  std::vector<Region> retired_;                           ///< Withdrawn here, but not by every peer
  std::vector<std::pair<std::int32_t, Message>> outbox_;  ///< Of calls that do not wait
  std::uint32_t next_generation_ = 1;

  std::vector<std::int32_t> free_;      ///< Of the sends
  std::vector<std::int32_t> unposted_;  ///< Of the receives
  Handle<fid_mr> slots_memory_;
  Handle<fid_mr> bounce_memory_;
  std::vector<std::int32_t> free_bounce_;
  std::int64_t pending_ = 0;  ///< Operations towards peers that are not gone
  std::uint64_t completed_ = 0;
  Deadline end_of_waits_ = Deadline::max();
  WaitBreaker* breaker_ = nullptr;
  std::string broken_;  ///< What libfabric said where no rank is to blame
};

}  // namespace shunt::ofi

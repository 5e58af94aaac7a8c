#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "mpi/mpi_call.h"
#include "net/network.h"

namespace shunt::mpi {

/// Puts and signals between nodes as messages of MPI. A message is a header, with small payload behind it; a
/// larger payload follows as a message of its own, which the receiver takes straight into the memory it is
/// for. Headers of one peer are handled in the order they were sent, and signals wait for all payload before
/// them.
/// Not one-sided, because MPI's windows do not work everywhere: with Open MPI 4.1 over TCP they fail between
/// hosts (MPI_ERR_WIN from osc/rdma and osc/pt2pt), and over UCX a put of 14 KB with its flush took longer
/// than the two messages here; windows also give no signal behind a put without a second flush. Where one-sided
/// is fast, inside a node, memory is shared and no Network is asked. Clusters with RDMA have transport ofi.
/// Flow control: at most kWindow messages to a peer that it has not said it handled; what it handled comes
/// back on its own messages, or alone.
class MpiNetwork final : public net::Network {
 public:
  /// Collective. world.nodes is filled in; ranks are those of MPI_COMM_WORLD.
  MpiNetwork(const World& world, std::chrono::milliseconds stall_deadline, Deadline deadline);
  /// Collective where nothing failed: waits until all ranks are here, so that nothing sent is lost.
  ~MpiNetwork() override;
  MpiNetwork(const MpiNetwork&) = delete;
  MpiNetwork& operator=(const MpiNetwork&) = delete;

  [[nodiscard]] std::string_view name() const noexcept override { return "mpi"; }
  [[nodiscard]] bool ordered() const noexcept override { return true; }
  [[nodiscard]] std::int64_t direct_put_bytes() const noexcept override { return kInline + 1; }
  [[nodiscard]] bool maskable() const noexcept override { return false; }
  net::MemoryName expose(std::int32_t id, std::byte* base, std::int64_t bytes) override;
  void admit(std::int32_t id, std::span<const net::MemoryName> names) override;
  void withdraw(std::int32_t id) noexcept override;
  void put(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
           std::int64_t bytes) override;
  void put_signal(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override;
  void signal(std::int32_t peer, std::int32_t id, std::int64_t signal_offset, std::uint64_t value) override;
  void fence() override {}  // Ordered anyway
  void quiet() override;
  void progress() override;
  [[nodiscard]] std::int32_t lost() noexcept override { return -1; }  // MPI ends the job instead.
  [[nodiscard]] std::unique_ptr<Collectives> make_collectives(Transport& transport, std::int64_t max_bytes,
                                                              Deadline deadline) override;
  void exclude(std::span<const std::int32_t> ranks) override;

 private:
  static constexpr std::int64_t kInline = 12 << 10;  ///< Largest payload that travels behind its header
  static constexpr std::uint64_t kWindow = 64;
  static constexpr std::size_t kRing = 8;  ///< Receives that wait for headers, per peer
  /// What any connection takes at once; more is on its way for certain only when the peer has said so.
  static constexpr std::uint64_t kSurelySent = 16 << 10;

  enum class Kind : std::uint32_t { put, flush, acknowledge };
  struct Header {
    Kind kind = Kind::put;
    std::int32_t id = -1;
    std::uint64_t generation = 0;  ///< Of the memory `id` at the receiver
    std::int64_t offset = 0;
    std::int64_t bytes = 0;
    std::int64_t signal_offset = -1;  ///< -1: no signal
    std::uint64_t value = 0;
    std::uint64_t handled = 0;  ///< Messages of the receiver that the sender has handled, ever
  };
  struct Message {
    Header header;
    std::array<std::byte, kInline> payload;
  };
  /// A message whose payload is under way, or that came behind such a one.
  struct Entry {
    bool complete = false;
    bool counts = true;  ///< Acknowledgements are not acknowledged
    Header header;
    std::unique_ptr<std::byte[]> discarded;  ///< Payload for memory that is gone
  };
  struct Peer {
    std::int32_t rank = 0;
    std::unique_ptr<std::array<Message, kRing>> ring;
    std::array<MPI_Request, kRing> receives{};  ///< Persistent
    std::size_t next = 0;                       ///< Place in the ring of the next header
    bool held = false;                          ///< It has come, but must wait for payload it overlaps
    std::deque<Entry> pending;
    std::uint64_t first_pending = 0;  ///< Number of pending.front()
    // Towards the peer.
    std::uint64_t sent = 0;
    std::uint64_t acknowledged = 0;
    std::uint64_t inline_bytes = 0;                        ///< Sent behind headers, headers included, ever
    std::uint64_t sure_bytes = 0;                          ///< Of them, known to have arrived
    std::array<std::uint64_t, 2 * kWindow> inline_then{};  ///< inline_bytes when message n had gone
    // From the peer.
    std::uint64_t handled = 0;
    std::uint64_t told = 0;
    Header acknowledgement;
    MPI_Request acknowledging = MPI_REQUEST_NULL;
  };
  struct Memory {
    std::byte* base = nullptr;
    std::int64_t bytes = 0;
    std::uint64_t generation = 0;
    std::vector<std::uint64_t> names;  ///< [R] generations at the peers
  };
  enum class Work : std::uint8_t { header, payload, message, flush, source };
  struct Under {
    Work work = Work::header;
    std::int32_t peer = 0;     ///< Index in peers_
    std::uint64_t number = 0;  ///< payload: of the entry; flush: inline_bytes then
    Message* slot = nullptr;   ///< message, flush: to be given back
  };

  [[nodiscard]] Peer& peer_of(std::int32_t rank);
  void send(Peer& peer, Kind kind, std::int32_t id, std::int64_t offset, const std::byte* from,
            std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value);
  void wait_for_room(Peer& peer);
  [[nodiscard]] Message* take_slot(Peer& peer);
  void watch(MPI_Request request, const Under& under);
  [[nodiscard]] bool advance();
  void take_headers(Peer& peer, std::int32_t index);
  [[nodiscard]] bool handle(Peer& peer, std::int32_t index, const Message& message);
  void settle(Peer& peer);
  void apply_signal(const Header& header) noexcept;
  [[nodiscard]] std::byte* target(const Header& header, std::int64_t offset, std::int64_t bytes) noexcept;
  void acknowledge(Peer& peer);
  [[nodiscard]] bool sent_to(const Peer& peer) const noexcept;
  template <class Done>
  void wait_until(const Peer& peer, const char* phase, const Done& done);
  void acknowledged(Peer& peer, std::uint64_t messages) noexcept;
  void make_sure(Peer& peer);
  void shut_down();

  std::int32_t rank_;
  std::chrono::milliseconds stall_;
  Communicator comm_;
  std::vector<std::int32_t> index_;  ///< [R] in peers_, or -1
  std::vector<Peer> peers_;          ///< Ranks of other nodes
  std::vector<Memory> memories_;     ///< By id
  std::uint64_t generations_ = 0;
  /// The first peers_.size() are the headers that come next; the same places in under_.
  std::vector<MPI_Request> requests_;
  std::vector<Under> under_;
  std::vector<int> done_;
  std::vector<std::unique_ptr<Message>> slots_;
  std::vector<Message*> free_slots_;
  bool owing_ = false;  ///< Some acknowledgement could not be sent yet
  bool dead_ = false;
};

}  // namespace shunt::mpi

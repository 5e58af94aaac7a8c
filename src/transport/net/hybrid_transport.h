#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bootstrap.h"
#include "net/control_region.h"
#include "net/network.h"
#include "shm/shm_transport.h"

namespace shunt::net {

/// Joins the memory that the ranks of a node share and a network between nodes. Towards ranks of the own node
/// every operation is a load or store, towards others it is the network's.
class HybridTransport final : public Transport, private shm::WaitHelper {
 public:
  struct Options {
    bool processes = true;        ///< Ranks of this node are processes, not threads
    bool oversubscribed = false;  ///< More ranks than CPUs on this machine
  };

  /// Collective: returns when all ranks are there. world.nodes is filled in and has several nodes. `segment` has
  /// one slot for each rank of this node.
  /// Ownership: segment and bootstrap must outlive this.
  HybridTransport(shm::Segment& segment, Bootstrap& bootstrap, std::unique_ptr<Network> network,
                  const World& world, const Options& options, Deadline deadline);
  /// Tells the others, and gives what is under way a short time to leave. Never waits for long.
  ~HybridTransport() override;

  [[nodiscard]] std::string_view name() const noexcept override { return network_->name(); }
  [[nodiscard]] std::string_view provider() const noexcept override { return network_->provider(); }
  [[nodiscard]] Capabilities capabilities() const noexcept override;
  SymmetricBuffer allocate(std::int64_t bytes, const char* what, Deadline deadline) override;
  void release(SymmetricBuffer& buffer) noexcept override;
  [[nodiscard]] std::byte* peer_pointer(const SymmetricBuffer& buffer,
                                        std::int32_t peer) const noexcept override;
  void put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
           std::int64_t bytes) override;
  void put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override;
  void signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
              std::uint64_t value) override;
  std::uint64_t wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset, std::uint64_t value,
                            Deadline deadline, const WaitSite& site) override;
  std::uint64_t poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) override;
  void fence() override;
  void quiet() override;
  void set_wait_breaker(WaitBreaker* breaker) noexcept override {
    node_->set_wait_breaker(breaker);
    network_->set_wait_breaker(breaker);
  }
  void set_waits_for_room(bool on) noexcept override {
    waits_for_room_ = on;
    network_->end_waits_at(on ? Deadline::max() : Deadline::min());
  }
  void exclude(std::span<const std::int32_t> ranks) override;
  std::unique_ptr<Collectives> make_collectives(std::int64_t max_bytes, Deadline deadline) override;

 private:
  struct Entry {
    SymmetricBuffer node_part = {};  ///< Of node_; id < 0: free
  };
  struct Request;
  struct Share;
  /// So that ids agree on all survivors after each call of exclude(), whatever they did before it.
  static constexpr std::int32_t kIdsPerMask = 1 << 20;

  // WaitHelper
  void progress() override;
  [[nodiscard]] bool is_remote(std::int32_t peer) const noexcept override {
    return peer >= 0 && peer < world_.size && local_of_[static_cast<std::size_t>(peer)] < 0;
  }
  [[nodiscard]] shm::Loss find_loss() override;
  [[nodiscard]] std::uint64_t notice_of(std::int32_t rank) const noexcept override;
  void publish(std::uint64_t notice, std::int32_t doubtful) noexcept override;
  void inquire(std::int32_t doubtful) noexcept override;
  void answer(std::uint64_t notice) noexcept override;

  [[nodiscard]] Entry& entry_for(std::int32_t id);
  /// Of an id that is there already.
  [[nodiscard]] Entry& entry_at(std::int32_t id) noexcept {
    return entries_[static_cast<std::size_t>(id / kIdsPerMask)][static_cast<std::size_t>(id % kIdsPerMask)];
  }
  [[nodiscard]] const Entry* entry_of(const SymmetricBuffer& buffer) const noexcept;
  void check(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, std::int64_t bytes) const;
  void check_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset) const;
  [[nodiscard]] std::byte* local_part(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept;
  template <typename Operation>
  void over_network(std::int32_t peer, const char* phase, const Operation& operation);
  void check_requests(std::span<const Request> requests, const char* what) const;
  [[nodiscard]] std::int32_t first_live_of_machine(std::int32_t rank) const noexcept;
  [[nodiscard]] bool has_finished(std::int32_t rank) const noexcept;
  void take_leave() noexcept;

  [[nodiscard]] bool has_left() noexcept;

  bool processes_;
  bool waits_for_room_ = true;
  Bootstrap& bootstrap_;
  std::vector<std::int32_t> local_of_;   ///< [R] index in the segment, or -1: on another node
  std::vector<std::uint64_t> machines_;  ///< [R] which ranks share the memory of one machine
  std::unique_ptr<shm::ShmTransport> node_;
  std::unique_ptr<Network> network_;
  std::unique_ptr<ControlRegion> control_;  ///< Null only in the constructor
  std::int32_t next_id_ = ControlRegion::kId + 1;
  /// [mask][id within it]: SymmetricBuffer::id is kIdsPerMask times the calls of exclude() before it, and the
  /// number of the allocation since; no id is used twice.
  std::vector<std::vector<Entry>> entries_;
  /// Allocations that a loss broke off when others may have known them already; given back with the next.
  std::vector<std::int32_t> abandoned_;
};

}  // namespace shunt::net

#pragma once

#include <cstdint>
#include <vector>

#include "shm/waiter.h"

namespace shunt::shm {

/// Ranks of one machine over a Segment. Loads and stores are the transfers, so every operation is complete on
/// return.
class ShmTransport final : public Transport {
 public:
  /// Collective: returns when all ranks are there. `segment` must outlive this.
  ShmTransport(Segment& segment, const World& world, bool processes, bool oversubscribed, Deadline deadline);
  /// Of the ranks of one node, as the part of a transport that joins several: `world` is that of the node alone
  /// and every peer of a call one of it. `members` [R of the node] are their ranks in the whole world, in whose
  /// terms errors speak; so does the waiter. `helper` as Waiter::set_helper().
  ShmTransport(Segment& segment, const World& world, std::vector<std::int32_t> members,
               std::int32_t world_size, WaitHelper* helper, bool processes, bool oversubscribed,
               Deadline deadline);
  ~ShmTransport() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "shm"; }
  [[nodiscard]] Capabilities capabilities() const noexcept override {
    return {.ordered = true, .load_store = true, .maskable = true};
  }
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
  void fence() override {}
  void quiet() override {}
  void set_wait_breaker(WaitBreaker* breaker) noexcept override { waiter_.set_breaker(breaker); }
  void exclude(std::span<const std::int32_t> ranks) override;

  [[nodiscard]] Waiter& waiter() noexcept { return waiter_; }

 private:
  struct Chunk {
    std::byte* base = nullptr;  ///< Null: free
    std::int64_t stride = 0;
    std::int64_t offset = 0;
    std::vector<std::uint8_t> without = {};  ///< [R] 1 for ranks excluded before; empty: nobody was
  };

  [[nodiscard]] bool holds(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
    return static_cast<std::uint32_t>(peer) < static_cast<std::uint32_t>(world_.size) &&
           static_cast<std::size_t>(buffer.id) < chunks_.size() &&
           chunks_[static_cast<std::size_t>(buffer.id)].base != nullptr;
  }
  [[nodiscard]] std::byte* target(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                  std::int64_t bytes) const;
  [[nodiscard]] std::byte* signal_target(const SymmetricBuffer& buffer, std::int32_t peer,
                                         std::int64_t signal_offset) const;
  void meet(Deadline deadline, const char* phase);
  [[nodiscard]] std::int32_t lowest_rank() const noexcept;
  [[nodiscard]] std::int32_t live_ranks() const noexcept;
  void check_memory(const Proposal& decided, std::int64_t stride, const char* what) const;
  [[nodiscard]] int map_and_touch(Chunk& chunk);
  void touch_peers(const Chunk& chunk);
  /// Of a rank of the node in the whole world.
  [[nodiscard]] std::int32_t name_of(std::int32_t rank) const noexcept {
    return members_[static_cast<std::size_t>(rank)];
  }

  Segment& segment_;
  bool processes_;
  std::vector<std::int32_t> members_;
  Waiter waiter_;
  std::uint64_t meetings_ = 0;  ///< kMeetingsPerMask times the calls of exclude(), and those since
  std::uint64_t allocations_ = 0;
  std::int64_t next_offset_;
  std::vector<Chunk> chunks_;  ///< By SymmetricBuffer::id
};

}  // namespace shunt::shm

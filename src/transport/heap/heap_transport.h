#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

#include "bells.h"
#include "heap/symmetric_heap.h"

namespace shunt::heap {

/// Ranks over the symmetric GPU memory of a library. What the ranks agree on, and that they are there, goes over a host
/// transport beneath, host(): the calls of such libraries are collective without a deadline and without an error that
/// names a rank, so each is entered only after every rank has said over host() that it comes.
/// Signals lie in GPU memory, where kernels find them; see Bells for how a host waits for one.
/// put() and its kin take sources in any memory of this process. What goes to a peer that cannot be stored to is copied
/// through a staging buffer, unless it lies in symmetric memory.
/// release() is local, as everywhere, while the libraries free collectively: memory goes back to the library with the
/// next allocate(), or at the end, once every rank has released it.
class HeapTransport final : public Transport {
 public:
  /// Makes the engine of Transport::make_kernel_engine().
  using EngineMaker = void* (*)(SymmetricHeap&, const World&);

  /// Collective. `host` must outlive this, unless it is `owned`. `make_engine` may be null.
  HeapTransport(Transport& host, std::unique_ptr<SymmetricHeap> heap, Deadline deadline,
                std::unique_ptr<Transport> owned = nullptr, EngineMaker make_engine = nullptr);
  /// Waits up to two seconds for the others, so that memory is given back together; then goes without.
  ~HeapTransport() override;

  [[nodiscard]] std::string_view name() const noexcept override { return heap_->name(); }
  [[nodiscard]] std::string_view provider() const noexcept override { return heap_->provider(); }
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
  void quiet() override { heap_->quiet(); }
  void set_wait_breaker(WaitBreaker* breaker) noexcept override { bells_.set_breaker(breaker); }
  void set_waits_for_room(bool on) noexcept override { host_.set_waits_for_room(on); }
  [[nodiscard]] Transport& host() noexcept override { return host_; }
  std::unique_ptr<Collectives> make_collectives(std::int64_t max_bytes, Deadline deadline) override;

  [[nodiscard]] void* make_kernel_engine() override {
    return make_engine_ == nullptr ? nullptr : make_engine_(*heap_, world_);
  }

  [[nodiscard]] StreamPuts* stream_puts() const noexcept { return heap_->stream_puts(); }

  /// Allocations that may exist at a time, those that not all ranks have released included.
  static constexpr std::int32_t kSlots = 512;
  static constexpr std::int64_t kStagingBytes = std::int64_t{1} << 20;

 private:
  enum class Use : std::uint8_t { free, held, released };
  struct Slot {
    Use use = Use::free;
    std::byte* local = nullptr;
    std::int64_t bytes = 0;              ///< As allocated
    std::vector<std::byte*> parts = {};  ///< [R] peers as this rank reaches them
  };
  /// What a rank brings to an allocation.
  struct Proposal {
    std::int64_t bytes = 0;
    std::int64_t available = 0;
    std::array<std::uint64_t, kSlots / 64> released{};
  };

  [[nodiscard]] bool holds(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept;
  void check(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, std::int64_t bytes) const;
  void check_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset) const;
  [[nodiscard]] std::byte* part(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
    return slots_[static_cast<std::size_t>(buffer.id)].parts[static_cast<std::size_t>(peer)];
  }
  void check_proposals(const std::vector<Proposal>& proposals, const char* what) const;
  void free_what_all_released(const std::vector<Proposal>& proposals);
  void put_over_network(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                        const void* from, std::int64_t bytes);
  void store_and_ring(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
                      std::uint64_t value);
  [[nodiscard]] std::chrono::nanoseconds left(Deadline deadline) const;

  std::unique_ptr<Transport> owned_;
  Transport& host_;
  std::unique_ptr<SymmetricHeap> heap_;
  EngineMaker make_engine_;
  std::unique_ptr<Collectives> agreement_;  ///< Over host_
  std::vector<Slot> slots_;                 ///< By SymmetricBuffer::id
  bool all_reachable_ = false;
  std::int32_t staging_ = -1;  ///< Slot; -1 where every peer can be stored to
  Bells bells_;
};

}  // namespace shunt::heap

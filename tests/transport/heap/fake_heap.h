#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <string_view>
#include <vector>

#include <shunt/core/error.h>

#include "heap/symmetric_heap.h"

namespace shunt::heap {

/// Memory that stands for the GPUs of all ranks, shared by threads and by processes forked after it is made.
class FakeWorld {
 public:
  static constexpr std::int64_t kPartBytes = std::int64_t{16} << 20;
  static constexpr std::size_t kMostRanks = 8;
  static constexpr std::size_t kMostCalls = 2048;

  /// Ranks of one node, `ranks_of_node` in a row, store to each other's memory.
  explicit FakeWorld(std::int32_t ranks_of_node) : ranks_of_node_(ranks_of_node) {
    memory_ = map(kPartBytes * static_cast<std::int64_t>(kMostRanks));
    calls_ = reinterpret_cast<Calls*>(map(sizeof(Calls) * kMostRanks));
  }
  ~FakeWorld() {
    munmap(memory_, static_cast<std::size_t>(kPartBytes) * kMostRanks);
    munmap(calls_, sizeof(Calls) * kMostRanks);
  }
  FakeWorld(const FakeWorld&) = delete;
  FakeWorld& operator=(const FakeWorld&) = delete;

  [[nodiscard]] std::byte* part(std::int32_t rank) const { return memory_ + kPartBytes * rank; }
  [[nodiscard]] bool reaches(std::int32_t rank, std::int32_t peer) const {
    return rank / ranks_of_node_ == peer / ranks_of_node_;
  }
  /// Notes a collective call.
  void note(std::int32_t rank, std::int64_t call) const {
    Calls& calls = calls_[rank];
    calls.call[calls.count % kMostCalls] = call;
    ++calls.count;
  }
  /// The collective calls of a rank in their order, once it has ended or waits: slot + 1, or -(slot + 1) for release.
  [[nodiscard]] std::vector<std::int64_t> calls(std::int32_t rank) const {
    const Calls& calls = calls_[rank];
    return {calls.call, calls.call + calls.count};
  }

  std::int32_t poor_rank = -1;  ///< Says that it has less memory than the others
  std::int32_t unlucky_rank = -1;
  std::int32_t unlucky_slot = -1;  ///< Of which the unlucky rank gets nothing

 private:
  struct Calls {
    std::size_t count;
    std::int64_t call[kMostCalls];
  };
  [[nodiscard]] static std::byte* map(std::int64_t bytes) {
    void* memory = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw Error(Errc::unavailable, "no shared memory for a test");
    return static_cast<std::byte*>(memory);
  }
  std::int32_t ranks_of_node_;
  std::byte* memory_;
  Calls* calls_;
};

/// A heap in that memory. Whatever is started happens in quiet() and not before, as on a stream that is slow, and what goes
/// over the network last of all, as a card that reads its sources late. So a source that is reused too early, and a bell
/// that rings too early, show.
class FakeHeap final : public SymmetricHeap {
 public:
  FakeHeap(const FakeWorld& world, std::int32_t rank) : world_(world), rank_(rank), offsets_(512, -1) {}

  [[nodiscard]] std::string_view name() const noexcept override { return "fake"; }
  [[nodiscard]] std::string_view provider() const noexcept override { return "pigeons"; }
  [[nodiscard]] std::int64_t available() override {
    return rank_ == world_.poor_rank ? FakeWorld::kPartBytes / 4 : FakeWorld::kPartBytes;
  }
  [[nodiscard]] std::byte* allocate(std::int32_t slot, std::int64_t bytes) override {
    world_.note(rank_, slot + 1);
    const std::int64_t offset = next_;
    next_ += bytes;
    if (next_ > FakeWorld::kPartBytes)
      throw Error(Errc::internal, "the fake heap is too small for this test");
    if (rank_ == world_.unlucky_rank && slot == world_.unlucky_slot) return nullptr;
    offsets_[static_cast<std::size_t>(slot)] = offset;
    std::memset(world_.part(rank_) + offset, 0, static_cast<std::size_t>(bytes));
    return world_.part(rank_) + offset;
  }
  void release(std::int32_t slot) override {
    world_.note(rank_, -(slot + 1));
    offsets_[static_cast<std::size_t>(slot)] = -1;
  }
  [[nodiscard]] std::byte* peer_pointer(std::int32_t slot, std::int32_t peer) override {
    return world_.reaches(rank_, peer) ? of(peer, slot) : nullptr;
  }
  void copy(void* to, const void* from, std::int64_t bytes) override {
    started_.emplace_back([=] { std::memcpy(to, from, static_cast<std::size_t>(bytes)); });
  }
  void store_signal(std::byte* word, std::uint64_t value) override {
    started_.emplace_back([=] { store(word, value); });
  }
  void put(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::int32_t from_slot,
           std::int64_t from_offset, std::int64_t bytes) override {
    std::byte* to = remote(peer, slot) + offset;
    const std::byte* from = of(rank_, from_slot) + from_offset;
    on_network_.emplace_back([=] { std::memcpy(to, from, static_cast<std::size_t>(bytes)); });
  }
  void put_signal(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::uint64_t value) override {
    std::byte* word = remote(peer, slot) + offset;
    on_network_.emplace_back([=] { store(word, value); });
  }
  [[nodiscard]] std::uint64_t load_signal(const std::byte* word) override {
    auto* plain = reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(word));
    return std::atomic_ref(*plain).load(std::memory_order_acquire);
  }
  void quiet() override {
    for (auto* queue : {&started_, &on_network_}) {
      for (const auto& one : *queue) one();
      queue->clear();
    }
  }
  void close(bool together) noexcept override { world_.note(rank_, together ? kTogether : kAlone); }

  /// Notes of close().
  static constexpr std::int64_t kTogether = 100'000;
  static constexpr std::int64_t kAlone = 200'000;

  static void store(std::byte* word, std::uint64_t value) {
    std::atomic_ref(*reinterpret_cast<std::uint64_t*>(word)).store(value, std::memory_order_release);
  }

 private:
  [[nodiscard]] std::byte* of(std::int32_t rank, std::int32_t slot) const {
    return world_.part(rank) + offsets_[static_cast<std::size_t>(slot)];
  }
  [[nodiscard]] std::byte* remote(std::int32_t peer, std::int32_t slot) const {
    if (world_.reaches(rank_, peer))
      throw Error(Errc::internal, "put over the network to a peer that can be stored to");
    return of(peer, slot);
  }

  const FakeWorld& world_;
  std::int32_t rank_;
  std::int64_t next_ = 0;
  std::vector<std::int64_t> offsets_;  ///< By slot
  std::deque<std::function<void()>> started_;
  std::deque<std::function<void()>> on_network_;
};

}  // namespace shunt::heap

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "heap/gpu_queue.h"
#include "heap/symmetric_heap.h"
#include "nccl/compat.h"

namespace shunt::nccl {

void require(const char* what, ncclResult_t result, ncclComm_t comm = nullptr);

/// Windows of an NCCL communicator. Peers of the LSA team (one node, or one NVLink domain across nodes) are loaded and
/// stored; the others are reached by GIN.
class NcclHeap final : public heap::SymmetricHeap {
 public:
  explicit NcclHeap(const heap::HeapOptions& options);
  ~NcclHeap() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "nccl"; }
  [[nodiscard]] std::string_view provider() const noexcept override { return network_ ? "gin" : ""; }
  [[nodiscard]] std::int64_t available() override;
  [[nodiscard]] std::byte* allocate(std::int32_t slot, std::int64_t bytes) override;
  void release(std::int32_t slot) override;
  [[nodiscard]] std::byte* peer_pointer(std::int32_t slot, std::int32_t peer) override;
  void copy(void* to, const void* from, std::int64_t bytes) override;
  void store_signal(std::byte* word, std::uint64_t value) override;
  void put(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::int32_t from_slot,
           std::int64_t from_offset, std::int64_t bytes) override;
  void put_signal(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::uint64_t value) override;
  [[nodiscard]] std::uint64_t load_signal(const std::byte* word) override;
  void quiet() override;
  void close(bool together) noexcept override;

  [[nodiscard]] ncclComm_t comm() const noexcept { return comm_; }
  [[nodiscard]] ncclWindow_t window(std::int32_t slot) const {
    return slots_.at(static_cast<std::size_t>(slot)).window;
  }

 private:
  struct Slot {
    void* memory = nullptr;
    std::int64_t bytes = 0;
    ncclWindow_t window = nullptr;
    std::vector<std::byte*> peers = {};  ///< [R]; null: not of the LSA team
  };

  std::int32_t size_;
  bool network_ = false;    ///< Some rank is outside the LSA team
  bool has_words_ = false;  ///< Words of windows are signals over the network
  std::unique_ptr<heap::GpuQueue> queue_;
  ncclComm_t comm_ = nullptr;
  ncclDevComm device_comm_{};
  bool has_device_comm_ = false;
  std::byte** pointers_ = nullptr;  ///< [R] device memory, for a look at a window
  std::vector<Slot> slots_;
  /// What this rank has last set a word of a peer to, (slot, peer, offset): the network can only add.
  std::map<std::tuple<std::int32_t, std::int32_t, std::int64_t>, std::uint64_t> words_;
};

[[nodiscard]] std::string description();
/// Also refuses a library that is older than the headers of this build: device code and library share structures.
[[nodiscard]] heap::Preflight preflight(const heap::HeapOptions& options);
[[nodiscard]] std::vector<std::byte> unique_id();

}  // namespace shunt::nccl

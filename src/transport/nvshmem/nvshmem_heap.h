#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <shunt/transport/stream_puts.h>

#include "heap/gpu_queue.h"
#include "heap/symmetric_heap.h"

namespace shunt::nvshmem {

/// The symmetric heap of NVSHMEM, of this process. What carries bytes between nodes is NVSHMEM's affair, by its own
/// variables (docs/install-gpu.md).
/// NVSHMEM has one PE in a process and may not be started again once it is finalised ("Execution Model": a later
/// initialisation is undefined), so the first heap of a process starts it and later ones, which must be of the same rank
/// and size, go on with it. It is finalised when the process exits, if the last heap was closed together with all others.
class NvshmemHeap final : public heap::SymmetricHeap, private StreamPuts {
 public:
  explicit NvshmemHeap(const heap::HeapOptions& options);
  ~NvshmemHeap() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "nvshmem"; }
  [[nodiscard]] std::string_view provider() const noexcept override { return provider_; }
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
  [[nodiscard]] StreamPuts* stream_puts() noexcept override { return this; }
  void close(bool together) noexcept override;

 private:
  void put_signal(std::int32_t peer, const SymmetricBuffer& to, std::int64_t offset, const void* from,
                  std::int64_t bytes, const SymmetricBuffer& words, std::int64_t word, std::uint64_t value,
                  void* stream) override;
  void wait(const SymmetricBuffer& words, std::int64_t word, std::uint64_t value, void* stream) override;
  void all_to_all(const SymmetricBuffer& to, std::int64_t offset, const void* from, std::int64_t bytes,
                  void* stream) override;
  [[nodiscard]] std::byte* memory(std::int32_t slot) const {
    return memory_.at(static_cast<std::size_t>(slot));
  }

  std::string provider_;
  std::unique_ptr<heap::GpuQueue> queue_;
  std::vector<std::byte*> memory_;  ///< By slot; null: free
};

/// Name and version of the library that is loaded.
[[nodiscard]] std::string description();
[[nodiscard]] heap::Preflight preflight(const heap::HeapOptions& options);
/// Errors: Errc::unavailable where NVSHMEM finds no interface to meet at (NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME).
[[nodiscard]] std::vector<std::byte> unique_id();

}  // namespace shunt::nvshmem

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shunt {
class StreamPuts;
}  // namespace shunt

namespace shunt::heap {

/// What HeapTransport needs of a library that gives all ranks symmetric GPU memory, across nodes too: NVSHMEM, windows of
/// NCCL. As thin as the library allows: arguments have been checked, and what the ranks must agree on has been agreed.
/// Slots number allocations; they are equal on all ranks.
/// Threads: one rank's object is used by one thread at a time.
/// Errors:  shunt::Error: unavailable with the reason, internal with the library's own words.
class SymmetricHeap {
 public:
  SymmetricHeap() = default;
  virtual ~SymmetricHeap() = default;
  SymmetricHeap(const SymmetricHeap&) = delete;
  SymmetricHeap& operator=(const SymmetricHeap&) = delete;

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;  ///< "nvshmem", "nccl"
  /// What carries bytes between nodes, as the library calls it; empty where nothing does.
  [[nodiscard]] virtual std::string_view provider() const noexcept = 0;
  /// Local. Bytes of GPU memory that are free now.
  [[nodiscard]] virtual std::int64_t available() = 0;

  /// Collective, and without a deadline of its own: whoever calls it has just heard from every rank. Zeroed memory of
  /// this GPU under `slot`, or null where the library has none.
  [[nodiscard]] virtual std::byte* allocate(std::int32_t slot, std::int64_t bytes) = 0;
  /// Collective, likewise, in the same order on all ranks.
  virtual void release(std::int32_t slot) = 0;
  /// Address of the peer's part where this GPU can load and store it, or null.
  [[nodiscard]] virtual std::byte* peer_pointer(std::int32_t slot, std::int32_t peer) = 0;

  /// These three take effect one after the other. Any memory that this GPU reaches, and of the host; `from` must stay as
  /// it is until quiet().
  virtual void copy(void* to, const void* from, std::int64_t bytes) = 0;
  /// Starts storing a word of memory that this GPU reaches, after everything started before.
  virtual void store_signal(std::byte* word, std::uint64_t value) = 0;
  /// Starts a copy from this rank's part to that of a peer without peer_pointer, after everything started before.
  virtual void put(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::int32_t from_slot,
                   std::int64_t from_offset, std::int64_t bytes) = 0;
  /// Starts setting a word of such a peer, to be seen there after every put to it before.
  virtual void put_signal(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::uint64_t value) = 0;

  /// The own word as it is now, whatever has been started.
  [[nodiscard]] virtual std::uint64_t load_signal(const std::byte* word) = 0;
  /// Returns when everything started has left its source, and will arrive without further calls.
  virtual void quiet() = 0;

  /// The library's calls for streams of others, or null: it has none.
  [[nodiscard]] virtual StreamPuts* stream_puts() noexcept { return nullptr; }

  /// Collective where `together`; else some rank is gone and nothing that waits for others may be called. Afterwards only
  /// destruction is allowed.
  virtual void close(bool together) noexcept = 0;
};

/// How a rank enters a heap. Plain values: it crosses the edge of a plugin.
struct HeapOptions {
  std::int32_t rank = 0;
  std::int32_t size = 1;
  std::int32_t local_rank = 0;
  std::vector<std::int32_t> devices = {};  ///< GPUs that the ranks of a node take in turn; empty: all
  std::vector<std::byte> unique_id = {};   ///< The one that rank 0 made
};

}  // namespace shunt::heap

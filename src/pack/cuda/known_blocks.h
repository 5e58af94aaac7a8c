#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace shunt::cuda::detail {

/// How many blocks of one kernel a processor runs side by side, by the shared memory of a block: asked for once each, since
/// the driver takes microseconds to answer. Beyond kKept sizes it is asked every time.
/// Threads: any, without locks; memory is its own alone.
class KnownBlocks {
 public:
  static constexpr std::int32_t kKept = 16;

  /// ask() answers for `shared_bytes`, at least 1.
  template <class Ask>
  [[nodiscard]] std::int32_t find(std::int32_t shared_bytes, const Ask& ask) {
    const std::uint64_t size = static_cast<std::uint64_t>(static_cast<std::uint32_t>(shared_bytes)) << 32U;
    for (std::atomic<std::uint64_t>& place : kept_) {
      const std::uint64_t kept = place.load(std::memory_order_relaxed);
      if (kept == 0) break;
      if ((kept & kSize) == size) return static_cast<std::int32_t>(kept & ~kSize);
    }
    const std::int32_t blocks = ask();
    const std::uint64_t entry = size | static_cast<std::uint32_t>(blocks);
    for (std::atomic<std::uint64_t>& place : kept_) {
      std::uint64_t other = 0;
      // Another thread may have put the same there meanwhile.
      if (place.compare_exchange_strong(other, entry, std::memory_order_relaxed) || other == entry) break;
    }
    return blocks;
  }

 private:
  static constexpr std::uint64_t kSize = ~std::uint64_t{0xffffffff};
  std::array<std::atomic<std::uint64_t>, kKept> kept_{};  ///< Size above, blocks below; 0: nothing yet
};

}  // namespace shunt::cuda::detail

#pragma once

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "shm/segment.h"

namespace shunt::shm {

/// Waits for words of shared memory: spins, then yields, then sleeps; looks for lost peers while it sleeps.
/// Threads: one rank's object is used by one thread at a time.
class Waiter {
 public:
  /// `oversubscribed`: more ranks than CPUs, so that the rank waited for may need this CPU.
  Waiter(const Segment& segment, std::int32_t rank, bool oversubscribed);
  ~Waiter();
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  /// Opens the peers' processes; before the first wait.
  void watch_processes(Deadline deadline);

  /// How this rank's peer ended is of no interest any more.
  void forget(std::int32_t peer) noexcept;

  /// Throws Errc::peer_lost where the others go on without this rank.
  void check_excluded(const WaitSite& site) const {
    if (load_excluded_by(segment_.slot(rank_)) != 0) [[unlikely]]
      throw_excluded(site);
  }

  std::uint64_t wait(const std::byte* word, std::uint64_t value, Deadline deadline,
                     const WaitSite& site) const {
    const std::uint64_t seen = load(word);
    if (reached(seen, value)) [[likely]]
      return seen;
    return wait_longer(word, value, deadline, site);
  }

 private:
  [[nodiscard]] static std::uint64_t load(const std::byte* word) noexcept {
    // atomic_ref of a const object comes with C++26; a load does not write.
    auto* plain = reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(word));
    return std::atomic_ref(*plain).load(std::memory_order_acquire);
  }
  [[nodiscard]] static bool reached(std::uint64_t seen, std::uint64_t value) noexcept {
    return static_cast<std::int64_t>(seen - value) >= 0;
  }

  struct Loss {
    std::int32_t rank = -1;
    const char* how = "";
  };

  std::uint64_t wait_longer(const std::byte* word, std::uint64_t value, Deadline deadline,
                            const WaitSite& site) const;
  [[nodiscard]] Loss find_loss(std::int32_t awaited) const;
  [[noreturn]] void throw_timeout(Clock::duration waited, const WaitSite& site) const;
  [[noreturn]] void throw_lost(const Loss& loss, const WaitSite& site) const;
  [[noreturn]] void throw_excluded(const WaitSite& site) const;

  const Segment& segment_;
  std::int32_t rank_;
  std::int32_t most_spins_;
  mutable std::int32_t spins_;             ///< Before the first yield; follows what the last waits showed
  mutable std::vector<pollfd> processes_;  ///< Of every rank; fd < 0 where there is none to watch
  std::vector<std::uint8_t> forgotten_;    ///< [R]
};

}  // namespace shunt::shm

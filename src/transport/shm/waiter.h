#pragma once

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/notice.h"
#include "shm/segment.h"
#include "signal_word.h"

namespace shunt::shm {

/// A rank that is gone, and how this is known.
struct Loss {
  std::int32_t rank = -1;
  std::string how = {};
};

/// What a wait needs beyond one segment, where some ranks of the world are on other nodes. Ranks are those of
/// the world.
class WaitHelper {
 public:
  /// Moves on what is under way between nodes.
  virtual void progress() = 0;
  /// Whether `peer` is on another node, so that its signal comes by progress() only.
  [[nodiscard]] virtual bool is_remote(std::int32_t peer) const noexcept = 0;
  /// A rank known to be gone by other means than the segment and notices.
  [[nodiscard]] virtual Loss find_loss() = 0;

  /// Last notice of a rank of another node.
  [[nodiscard]] virtual std::uint64_t notice_of(std::int32_t rank) const noexcept = 0;
  /// Tells the ranks of other nodes, `doubtful` last: it may be taking nothing. A rank that cannot be told learns
  /// it otherwise.
  virtual void publish(std::uint64_t notice, std::int32_t doubtful) noexcept = 0;
  /// Asks the ranks of other nodes for a new notice, likewise.
  virtual void inquire(std::int32_t doubtful) noexcept = 0;
  /// Tells those who have asked since the last call.
  virtual void answer(std::uint64_t notice) noexcept = 0;

 protected:
  ~WaitHelper() = default;
};

/// Waits for words of shared memory: spins, then yields, then sleeps; looks for lost peers while it sleeps.
/// Who is to blame for a timeout: a rank that gives up follows the chain of ranks that wait for each other,
/// from the one it waited for to one that does not wait, and accuses that one. Ranks that still wait end when
/// they see the accusation. So all name the same rank, and none an innocent rank that was itself held up.
/// Threads: one rank's object is used by one thread at a time.
class Waiter {
 public:
  /// `members`: rank in the world for each slot of `segment`, of which `index` is this rank's.
  /// `oversubscribed`: more ranks than CPUs, so that the rank waited for may need this CPU.
  Waiter(const Segment& segment, std::vector<std::int32_t> members, std::int32_t index,
         std::int32_t world_size, bool oversubscribed);
  ~Waiter();
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  /// Opens the peers' processes; before the first wait.
  void watch_processes(Deadline deadline);
  /// `helper` must outlive the waits; null: all ranks of the world are in the segment.
  void set_helper(WaitHelper* helper) noexcept { helper_ = helper; }

  /// See Transport::set_wait_breaker().
  void set_breaker(WaitBreaker* breaker) noexcept { breaker_ = breaker; }

  /// How `peer` ended is of no interest any more.
  void forget(std::int32_t peer) noexcept;

  /// What ranks were accused of up to now is of no interest any more.
  void settle() noexcept;

  /// Throws Errc::peer_lost where the others go on without this rank.
  void check_excluded(const WaitSite& site) const {
    if (load_excluded_by(segment_.slot(index_)) != 0) [[unlikely]]
      throw_excluded(site);
  }

  std::uint64_t wait(const std::byte* word, std::uint64_t value, Deadline deadline,
                     const WaitSite& site) const {
    const std::uint64_t seen = load(word);
    if (reached(seen, value)) [[likely]]
      return seen;
    return wait_longer(word, value, deadline, site);
  }

  /// A rank of the segment whose process ended before its body did, and which is not forgotten, or -1.
  [[nodiscard]] std::int32_t find_ended() const;
  /// Tells every rank; for ends that are not seen in a wait.
  void publish(const Notice& notice) const noexcept;
  /// Last word of `rank`; see pack_notice().
  [[nodiscard]] std::uint64_t notice_word(std::int32_t rank) const noexcept;

 private:
  [[nodiscard]] static std::uint64_t load(const std::byte* word) noexcept {
    // atomic_ref of a const object comes with C++26; a load does not write.
    auto* plain = reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(word));
    return std::atomic_ref(*plain).load(std::memory_order_acquire);
  }

  std::uint64_t wait_longer(const std::byte* word, std::uint64_t value, Deadline deadline,
                            const WaitSite& site) const;
  std::uint64_t give_up(const std::byte* word, std::uint64_t value, Clock::time_point start,
                        const WaitSite& site) const;
  void tell_waiting(const WaitSite& site) const noexcept;
  [[nodiscard]] Loss find_loss(std::int32_t awaited) const;
  [[nodiscard]] bool forgotten(std::int32_t rank) const noexcept {
    return forgotten_[static_cast<std::size_t>(rank)] != 0;
  }
  [[nodiscard]] std::int32_t follow(const std::vector<std::uint64_t>& before, std::int32_t awaited) const;
  [[noreturn]] void throw_timeout(Clock::duration waited, const WaitSite& site) const;
  [[noreturn]] void throw_lost(const Loss& loss, const WaitSite& site) const;
  [[noreturn]] void throw_excluded(const WaitSite& site) const;
  void check_breaker(const WaitSite& site) const;

  const Segment& segment_;
  std::vector<std::int32_t> members_;
  std::vector<std::int32_t> slot_of_;  ///< By rank in the world; -1: on another node
  std::int32_t index_;
  std::int32_t rank_;
  WaitHelper* helper_ = nullptr;
  WaitBreaker* breaker_ = nullptr;
  std::int32_t most_spins_;
  mutable std::int32_t spins_;             ///< Before the first yield; follows what the last waits showed
  mutable std::uint32_t notices_ = 0;      ///< Of this rank so far
  mutable std::vector<pollfd> processes_;  ///< By slot; fd < 0 where there is none to watch
  std::vector<std::uint8_t> forgotten_;    ///< [R]
  std::vector<std::uint64_t> settled_;     ///< [R] notices that are of no interest any more
};

}  // namespace shunt::shm

#pragma once

#include <atomic>
#include <cstdint>

#include <shunt/transport/transport.h>

namespace shunt::shm {

enum class RankState : std::uint32_t {
  running,   ///< Or not started yet
  finished,  ///< Its body returned
  failed,    ///< Its body threw
  lost,      ///< Its process ended in any other way
};

/// What one rank brings to a collective allocation.
struct Proposal {
  std::int64_t bytes = 0;
  std::int64_t available = 0;  ///< Memory available; the lowest rank alone measures: all ranks decide alike
  std::int64_t offset = 0;     ///< First offset that this rank has not given away; the largest one is taken
  std::int32_t error = 0;      ///< errno of mapping or touching the memory
};

inline constexpr std::int32_t kMessageBytes = 3072;

/// One rank's part of the control area. Lies in memory shared by processes: no pointers, no constructors with
/// effects; a fresh memfd is all zero, which is the initial value of every field. Fields that two ranks use
/// at the same time are accessed through std::atomic_ref only.
struct RankSlot {
  alignas(kSignalStride) std::uint64_t arrived;  ///< Epoch of the control barrier this rank has entered
  alignas(kSignalStride) std::uint32_t state;    ///< RankState
  std::int32_t pid;                              ///< Written by the parent; 0 in threads mode
  std::int32_t exit_status;
  std::int32_t error;  ///< 0, or 1 + the Errc of the shunt::Error that ended the rank
  /// 0, or 1 + a rank that goes on without this one; this one must end when it sees it.
  std::int32_t excluded_by;
  /// Last notice of this rank (pack_notice()), renewed in every look of a long wait.
  alignas(kSignalStride) std::uint64_t notice;
  /// By parity of the allocation: a rank may be one allocation ahead of one that still reads.
  alignas(kSignalStride) Proposal proposals[2];
  std::uint64_t cookie;  ///< Of the first slot: see Segment::set_cookie()
  alignas(kSignalStride) std::int32_t message_bytes;
  char message[kMessageBytes];
};

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic_ref<std::uint32_t>::is_always_lock_free);
static_assert(std::atomic_ref<std::int32_t>::is_always_lock_free);

[[nodiscard]] inline RankState load_state(RankSlot& slot) noexcept {
  return static_cast<RankState>(std::atomic_ref(slot.state).load(std::memory_order_acquire));
}

/// 0, or 1 + a rank that goes on without the owner of `slot`.
[[nodiscard]] inline std::int32_t load_excluded_by(RankSlot& slot) noexcept {
  return std::atomic_ref(slot.excluded_by).load(std::memory_order_acquire);
}

/// First end wins: the parent's `lost` does not replace what the rank itself reported.
inline void end_state(RankSlot& slot, RankState state) noexcept {
  auto expected = static_cast<std::uint32_t>(RankState::running);
  std::atomic_ref(slot.state)
      .compare_exchange_strong(expected, static_cast<std::uint32_t>(state), std::memory_order_acq_rel);
}

}  // namespace shunt::shm

#pragma once

// How bytes of one rank reach another from inside a kernel. Kernels of the step between ranks are templates over a net;
// a net is a small trivially copyable value that travels with a kernel's arguments. Offsets are those of the object's
// symmetric memory, the same on every rank. Signals are 64-bit numbers that only grow, by index: kind * R + rank of the
// writer (frame.h).
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>

namespace shunt::cuda::detail {

/// Bytes from one signal word to the next, where signals are words of symmetric memory.
inline constexpr std::int64_t kSignalWordStride = 128;

/// Peers whose memory this rank stores to: NVLink, PCIe peer access, or the same GPU. Kernels write rows themselves and
/// raise signals with a release at system scope.
struct LoadStoreNet {
  static constexpr bool kLoadStore = true;

  std::byte* const* bases = nullptr;  ///< [R] device memory: each rank's part, as this rank reaches it
  std::int64_t signals_at = 0;        ///< Offset of signal 0
  std::int32_t rank = 0;              ///< This one

  [[nodiscard]] SHUNT_DEVICE std::byte* peer(std::int32_t to) const { return bases[to]; }
  [[nodiscard]] SHUNT_DEVICE std::uint64_t* word(std::int32_t of, std::int32_t signal) const {
    return reinterpret_cast<std::uint64_t*>(bases[of] + signals_at + signal * kSignalWordStride);
  }

  /// One thread: peer's signal becomes `value`; covers every store that happened before on this GPU (own, or ordered
  /// before by a barrier and an acquire).
  template <class Context>
  SHUNT_DEVICE void raise(Context& ctx, std::int32_t to, std::int32_t signal, std::uint64_t value) const {
    ctx.store_release(device::Scope::system, word(to, signal), value);
  }
  /// One thread: an own signal. What was written before it was raised is visible then.
  template <class Context>
  [[nodiscard]] SHUNT_DEVICE std::uint64_t load(Context& ctx, std::int32_t signal) const {
    return ctx.load_acquire(device::Scope::system, word(rank, signal));
  }
};

/// What a net across a network offers instead of peer() and raise(). Every message says itself, by adding to a signal of
/// the peer, that it has arrived; the receiver knows from the announcement how many to wait for. So a net needs no order
/// among messages, no fence and no quiet: neither between threads, nor between queue pairs.
/// put():   the whole warp, converged, with equal arguments: starts copying `bytes` (>= 1) from offset `from` of this
///          rank's part to offset `to` of peer's, and adds 1 to the peer's `signal` after the bytes are visible there
///          to whoever reads the signal with load(). `from` was written by earlier kernels of the stream, or by this
///          warp before a fence(system); it is not written again before the peer has answered what it got, so nobody
///          waits for it to be read out. `peer` may be the own rank. NVSHMEM: nvshmemx_putmem_signal_nbi_warp with
///          NVSHMEM_SIGNAL_ADD.
/// load():  one thread: an own signal, with acquire.
/// Signals: nobody else writes a signal; each kind of message has its own. All are 0 when the object is made.
template <class Net, class Context>
concept PutNet = std::is_trivially_copyable_v<Net> && !Net::kLoadStore &&
                 requires(const Net& net, Context& ctx, std::int32_t rank, std::int64_t offset) {
  net.put(ctx, rank, offset, offset, offset, rank);  // peer, to, from, bytes, signal
  { net.load(ctx, rank) } -> std::same_as<std::uint64_t>;
};

}  // namespace shunt::cuda::detail

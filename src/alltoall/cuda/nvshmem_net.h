#pragma once

// The net of NVSHMEM: for nvcc, in the plugin alone. Words in quotes name sections of the NVSHMEM documentation
// (https://docs.nvidia.com/nvshmem/api/).
#include <nvshmem.h>
#include <nvshmemx.h>

#include <cstddef>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>

#include "net.h"

namespace shunt::cuda::detail {

/// See PutNet. Peers of the same node are stored to by NVSHMEM itself.
struct NvshmemNet {
  static constexpr bool kLoadStore = false;

  std::byte* local = nullptr;   ///< This rank's part; equal offsets mean the same object on every PE
  std::int64_t signals_at = 0;  ///< Offset of signal 0

  [[nodiscard]] SHUNT_DEVICE std::uint64_t* word(std::int32_t signal) const {
    return reinterpret_cast<std::uint64_t*>(local + signals_at + signal * kSignalWordStride);
  }

  /// "Signaling Operations", NVSHMEM_PUT_SIGNAL_NBI: the signal is updated after the data of the same call has been
  /// delivered; nothing is said about other calls, and nothing is needed. "NVSHMEMX_PUTMEM_SIGNAL_NBI_WARP" is called by all
  /// lanes with the same arguments.
  template <class Context>
  SHUNT_DEVICE void put(Context& /*ctx*/, std::int32_t peer, std::int64_t to, std::int64_t from,
                        std::int64_t bytes, std::int32_t signal) const {
    nvshmemx_putmem_signal_nbi_warp(local + to, local + from, static_cast<std::size_t>(bytes), word(signal),
                                    1, NVSHMEM_SIGNAL_ADD, peer);
  }

  /// "Point-To-Point Synchronization": only the wait and test routines promise that what the signal announces is visible
  /// too (over some networks data passes the signal on its way into GPU memory, and these routines see to it; what
  /// nvshmem_signal_fetch promises is the value alone). A test and no wait: "NVSHMEMX_COLLECTIVE_LAUNCH" is demanded of
  /// kernels that call what waits for other PEs. The word only grows, so the test of what has just been read holds.
  template <class Context>
  [[nodiscard]] SHUNT_DEVICE std::uint64_t load(Context& ctx, std::int32_t signal) const {
    const std::uint64_t seen = ctx.load_acquire(device::Scope::system, word(signal));
    if (seen != 0) static_cast<void>(nvshmem_uint64_test(word(signal), NVSHMEM_CMP_GE, seen));
    return seen;
  }
};

}  // namespace shunt::cuda::detail

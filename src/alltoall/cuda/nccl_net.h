#pragma once

// The net of NCCL: for nvcc, in the plugin alone. Words in quotes name sections of the NCCL documentation
// (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/device.html).
#include <cstddef>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>

#include "nccl/compat.h"
#include "net.h"

namespace shunt::cuda::detail {

/// See PutNet. Ranks of the LSA team are stored to, and their signals are words of the window; to the others GIN puts,
/// and their signals are GIN's numbered ones. A signal has one writer, so each is either the one or the other.
struct NcclNet {
  static constexpr bool kLoadStore = false;
  /// One context: a signal is read through the context that raises it. What several would gain is not measured.
  static constexpr int kContext = 0;

  const ncclDevComm* comm = nullptr;  ///< In device memory
  ncclWindow_t window = nullptr;
  std::byte* const* bases =
      nullptr;  ///< [R] device memory: parts of the LSA team as this rank reaches them, or null
  std::byte* local = nullptr;
  std::int64_t signals_at = 0;  ///< Offset of signal 0 among the words
  std::int32_t num_ranks = 1;

  [[nodiscard]] SHUNT_DEVICE std::uint64_t* word(std::byte* part, std::int32_t signal) const {
    return reinterpret_cast<std::uint64_t*>(part + signals_at + signal * kSignalWordStride);
  }

  /// "Device API - GIN", put: a weak signal is raised once the bundled put is settled at the peer, which is all that is
  /// asked for. Its defaults release what this thread and earlier kernels wrote at device scope.
  template <class Context>
  SHUNT_DEVICE void put(Context& ctx, std::int32_t peer, std::int64_t to, std::int64_t from,
                        std::int64_t bytes, std::int32_t signal) const {
    if (std::byte* base = bases[peer]; base != nullptr) {
      copy(ctx, base + to, local + from, bytes);
      ctx.sync_warp();
      // Its release covers what the other lanes stored before sync_warp.
      if (ctx.lane() == 0) ctx.fetch_add(device::Scope::system, word(base, signal), std::uint64_t{1});
      return;
    }
    const ncclGin gin(*comm, kContext);
    gin.put(ncclTeamWorld(*comm), peer, window, static_cast<std::size_t>(to), window,
            static_cast<std::size_t>(from), static_cast<std::size_t>(bytes),
            nccl::AddToSignal{static_cast<ncclGinSignal_t>(signal), 1}, ncclGin_None{}, ncclCoopWarp());
  }

  /// "Device API - GIN", readSignal: acquire, as the load of a word.
  template <class Context>
  [[nodiscard]] SHUNT_DEVICE std::uint64_t load(Context& ctx, std::int32_t signal) const {
    if (bases[signal % num_ranks] != nullptr)
      return ctx.load_acquire(device::Scope::system, word(local, signal));
    const ncclGin gin(*comm, kContext);
    return gin.readSignal(static_cast<ncclGinSignal_t>(signal));
  }

 private:
  /// By one warp; 16 bytes a lane where both sides allow.
  template <class Context>
  static SHUNT_DEVICE void copy(Context& ctx, std::byte* to, const std::byte* from, std::int64_t bytes) {
    const auto both = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
    const std::int64_t whole = both % 16 == 0 ? bytes / 16 * 16 : 0;
    for (std::int64_t at = ctx.lane() * 16; at < whole; at += device::kWarpSize * 16)
      ctx.store16(to + at, ctx.load16(from + at));
    for (std::int64_t at = whole + ctx.lane(); at < bytes; at += device::kWarpSize) to[at] = from[at];
  }
};

}  // namespace shunt::cuda::detail

#pragma once

// The versions of NCCL that this builds with, 2.28.7 and newer, brought to one set of names; nobody else looks at
// NCCL_VERSION_CODE.
#include <nccl.h>
#include <nccl_device.h>

#include <cstddef>
#include <cstdint>

#if NCCL_VERSION_CODE < 22807
#error "NCCL 2.28.7 or newer is needed: older versions have no network operations for kernels"
#endif

namespace shunt::nccl {

/// Signals that are words of a window came with 2.29.7; before, signals have numbers only. Of the words, hosts make use.
inline constexpr bool kHasWindowSignals = NCCL_VERSION_CODE >= 22907;

/// Adds to a numbered signal of the peer once the bundled put is settled there.
#if NCCL_VERSION_CODE >= 23200
using AddToSignal = ncclGin_WeakSignalAdd;
#else
using AddToSignal = ncclGin_SignalAdd;
#endif

#if NCCL_VERSION_CODE >= 23200
using AddToWord = ncclGin_StrongVASignalAdd;
#elif NCCL_VERSION_CODE >= 22907
using AddToWord = ncclGin_VASignalAdd;
#endif

/// Flags of a window. Where words of it are signals they must be in order, in the versions that know a flag for that.
inline constexpr int window_flags([[maybe_unused]] bool words) {
#if defined(NCCL_WIN_STRICT_ORDERING)
  if (words) return NCCL_WIN_COLL_SYMMETRIC | NCCL_WIN_STRICT_ORDERING;
#endif
  return NCCL_WIN_COLL_SYMMETRIC;
}

/// Whether signals that cover all puts before them, and signals that are words of a window, are needed. Newer versions ask
/// for both unless told, and refuse networks that lack them. A template, so that older ones without the fields compile.
template <class Requirements>
void require_words(Requirements& needed, bool words) {
  if constexpr (requires { needed.ginStrongSignalsRequired; }) needed.ginStrongSignalsRequired = words;
  if constexpr (requires { needed.ginVaSignalsRequired; }) needed.ginVaSignalsRequired = words;
}

/// What a communicator for kernels needs: so many numbered signals, connections to all ranks over the network, and where
/// `words` signals of the host, which are words of a window.
inline ncclDevCommRequirements requirements(std::int32_t num_signals, bool network, bool words) {
#if defined(NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER)
  ncclDevCommRequirements needed = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
#else
  ncclDevCommRequirements needed{};
#endif
  if (!network) return needed;
  needed.ginForceEnable = true;
  needed.ginContextCount = 1;
  needed.ginSignalCount = num_signals;
  require_words(needed, words && kHasWindowSignals);
#if NCCL_VERSION_CODE >= 22907
  needed.ginConnectionType = NCCL_GIN_CONNECTION_FULL;
#endif
  return needed;
}

}  // namespace shunt::nccl

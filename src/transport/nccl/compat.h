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

/// What a communicator for kernels needs: so many numbered signals, and connections to all ranks over the network.
inline ncclDevCommRequirements requirements(std::int32_t num_signals, bool network) {
#if defined(NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER)
  ncclDevCommRequirements needed = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
#else
  ncclDevCommRequirements needed{};
#endif
  if (!network) return needed;
  needed.ginForceEnable = true;
  needed.ginContextCount = 1;
  needed.ginSignalCount = num_signals;
#if NCCL_VERSION_CODE >= 22907
  needed.ginConnectionType = NCCL_GIN_CONNECTION_FULL;
#endif
  return needed;
}

}  // namespace shunt::nccl

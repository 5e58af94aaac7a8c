#pragma once

#include <memory>
#include <string>

#include "runtime.h"

namespace shunt::bench {

/// Why NCCL cannot be used here; empty where it can.
[[nodiscard]] std::string nccl_unavailable();
/// Collective. Grouped ncclSend and ncclRecv.
/// Errors: Errc::unavailable where two ranks share a GPU, which NCCL refuses, and where NCCL does not start; on every rank,
///         or on those that NCCL names.
[[nodiscard]] std::unique_ptr<GpuExchange> make_nccl_exchange(const MethodContext& context);

}  // namespace shunt::bench

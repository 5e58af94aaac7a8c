#pragma once

#include <memory>
#include <string>

#include "runtime.h"

namespace shunt::bench {

/// Why NCCL cannot be used here; empty where it can.
[[nodiscard]] std::string nccl_unavailable();
/// Collective. Grouped ncclSend and ncclRecv.
/// Errors: Errc::unavailable on every rank where two ranks share a GPU, which NCCL refuses.
[[nodiscard]] std::unique_ptr<GpuExchange> make_nccl_exchange(const MethodContext& context);

}  // namespace shunt::bench

#pragma once

#include <memory>
#include <string>

#include <shunt/transport/stream_puts.h>

#include "runtime.h"

namespace shunt::bench {

/// Collective. Each piece is put straight to where it is received, with a signal of its own that the receiver's stream
/// waits for. Pieces lie in memory of allocate(). `puts` is of the context's transport.
[[nodiscard]] std::unique_ptr<GpuExchange> make_put_exchange(const MethodContext& context, StreamPuts& puts);

/// Collective. The same by NVSHMEM.
/// Errors: Errc::unavailable where nvshmem_unsuited() has a reason.
[[nodiscard]] std::unique_ptr<GpuExchange> make_nvshmem_exchange(const MethodContext& context);
/// Why a world over `transport` cannot have it; empty where it can.
[[nodiscard]] std::string nvshmem_unsuited(const Transport& transport);

}  // namespace shunt::bench

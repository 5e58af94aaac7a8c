#pragma once

#include <shunt/alltoall/config.h>

#include "shared_memory.h"

namespace shunt::bench {

/// The library itself. Tokens lie in its token buffer, put there before anything is timed.
[[nodiscard]] std::unique_ptr<Method> make_shunt_method(const MethodContext& context, Delivery delivery,
                                                        Path path = Path::automatic);
/// A whole step with zero tokens: what announcing and waiting cost.
[[nodiscard]] std::unique_ptr<Method> make_empty_method(const MethodContext& context);
[[nodiscard]] std::int64_t shunt_bytes(const Workload& workload, const MethodSettings& settings,
                                       Delivery delivery, Path path = Path::automatic);

}  // namespace shunt::bench

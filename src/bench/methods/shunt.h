#pragma once

#include <shunt/alltoall/config.h>

#include "shared_memory.h"

namespace shunt::bench {

/// What of an AllToAllConfig makes one method differ from another.
struct ShuntWay {
  Delivery delivery = Delivery::rows;
  Path path = Path::automatic;
  bool presum = false;
};

/// The library itself. Tokens lie in its token buffer, put there before anything is timed.
/// Errors: Errc::unavailable for partial sums with replicas.
[[nodiscard]] std::unique_ptr<Method> make_shunt_method(const MethodContext& context, const ShuntWay& way);
/// A whole step with zero tokens: what announcing and waiting cost.
[[nodiscard]] std::unique_ptr<Method> make_empty_method(const MethodContext& context);
/// 0 where make_shunt_method refuses.
[[nodiscard]] std::int64_t shunt_bytes(const Workload& workload, const MethodSettings& settings,
                                       const ShuntWay& way);

}  // namespace shunt::bench

#pragma once

#include <vector>

#include <shunt/bench/method.h>

namespace shunt::bench {

/// CPUs that the calling thread may run on.
[[nodiscard]] std::vector<int> usable_cpus();

/// The packed method over gloo::alltoallv, TCP. gloo's own thread runs on `cpus`; empty: where the rank does.
[[nodiscard]] std::unique_ptr<Method> make_gloo_method(const MethodContext& context,
                                                       const std::vector<int>& cpus);
[[nodiscard]] SharedSizes gloo_sizes(const Workload& workload);

}  // namespace shunt::bench

#pragma once

#include <shunt/bench/method.h>

namespace shunt::bench {

/// Why torch cannot run on this machine, or empty. Looks for a Python that has it: some 50 ms the first time,
/// nothing later.
[[nodiscard]] std::string torch_unavailable();

/// torch.distributed.all_to_all_single, in a Python process of each rank (benchmarks/peers/torch_alltoall.py).
[[nodiscard]] std::unique_ptr<Method> make_torch_method(const MethodContext& context);
[[nodiscard]] SharedSizes torch_sizes(const Workload& workload);
/// What the Python process of the rank that receives most takes, PyTorch itself included.
[[nodiscard]] std::int64_t torch_bytes(const Workload& workload, const MethodSettings& settings);

}  // namespace shunt::bench

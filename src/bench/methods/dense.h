#pragma once

#include "shared_memory.h"

namespace shunt::bench {

/// The padded all-to-all: every (rank, local expert) block travels at its full capacity.
[[nodiscard]] std::unique_ptr<Method> make_dense_method(const MethodContext& context);
[[nodiscard]] SharedSizes dense_sizes(const Workload& workload);
/// Bytes all ranks move in one iteration, padding included.
[[nodiscard]] std::int64_t dense_moved_bytes(const Workload& workload);
/// Bytes one rank sends in dispatch.
[[nodiscard]] std::int64_t dense_dispatch_bytes(const Workload& workload);

}  // namespace shunt::bench

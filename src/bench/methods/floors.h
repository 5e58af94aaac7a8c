#pragma once

#include "shared_memory.h"

namespace shunt::bench {

/// How xcopy moves its bytes.
enum class CopyWay : std::uint8_t {
  push,
  push_streaming,
  pull,
  pull_streaming,
  put,       ///< Where memory cannot be loaded: a token once to each rank there.
  put_node,  ///< Likewise once to each node, its tokens in equal parts to its ranks.
};

/// The payload of dispatch between the same ranks as plain contiguous copies, one piece per pair of ranks;
/// the source is the sender's tokens, read again from the start where more rows than tokens go to one peer.
/// No combine.
[[nodiscard]] std::unique_ptr<Method> make_xcopy_method(const MethodContext& context, CopyWay way);
[[nodiscard]] std::unique_ptr<Method> make_put_floor(const MethodContext& context, bool node);
[[nodiscard]] SharedSizes xcopy_sizes(const Workload& workload);

/// The weighted sums of combine over rows that already lie in private memory. No dispatch.
[[nodiscard]] std::unique_ptr<Method> make_reduce_method(const MethodContext& context);
[[nodiscard]] SharedSizes reduce_sizes(const Workload& workload);

}  // namespace shunt::bench

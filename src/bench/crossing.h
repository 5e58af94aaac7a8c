#pragma once

#include <cstdint>
#include <span>

#include <shunt/bench/results.h>
#include <shunt/bench/workload.h>

namespace shunt::bench {

/// Counts from the expert choices what one step must move to ranks whose memory cannot be loaded. node_of [R]: ranks
/// of one node load each other's memory; empty: all do, and nothing crosses. `path`: what crosses once, a token
/// per rank or a token per node. `presum`: for each of these rows one row of results comes back, else one for each
/// selection.
/// Result: the counted fields of Crossing, and for uniform routing (no mask, every group with all its tokens)
///         the closed form with its standard deviation.
[[nodiscard]] Crossing expect_crossing(const Workload& workload, std::span<const std::int32_t> node_of,
                                       CrossingPath path, bool presum = false);

}  // namespace shunt::bench

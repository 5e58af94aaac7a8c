#pragma once

#include <vector>

#include <shunt/bench/routing_bench.h>

#include "team.h"

namespace shunt::bench {

/// Logits [T, E] of a point: of its router on normal tokens, or normal ones; with its noise. `router_ms` becomes the time
/// of the router alone.
[[nodiscard]] std::vector<float> make_logits(const RoutingPoint& point, Team& team, double& router_ms);

/// What the point's gate makes of them.
[[nodiscard]] GateOutput<float> make_choice(const RoutingPoint& point, Team& team, double& router_ms);

}  // namespace shunt::bench

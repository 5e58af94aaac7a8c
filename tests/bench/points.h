#pragma once

#include <shunt/bench/workload.h>

namespace shunt::bench {

/// A small point for tests.
inline Point small_point() {
  Point point;
  point.preset = "custom";
  point.num_experts = 6;
  point.top_k = 2;
  point.hidden = 40;
  point.tokens = 5;
  point.ranks = 2;
  point.routing_label = "uniform";
  point.seed = 7;
  return point;
}

}  // namespace shunt::bench

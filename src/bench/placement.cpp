#include <shunt/bench/placement.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace shunt::bench {
namespace {

double refine(double prior, const std::vector<double>& sorted) {
  double best = prior;
  double widest = 1.6;
  for (std::size_t i = 1; i < sorted.size(); ++i) {
    const double ratio = sorted[i] / sorted[i - 1];
    const double middle = std::sqrt(sorted[i] * sorted[i - 1]);
    if (ratio < widest || middle < prior / 2 || middle > prior * 2) continue;
    widest = ratio;
    best = middle;
  }
  return best;
}

}  // namespace

PlacementThresholds vendor_thresholds(std::string_view cpu_vendor) {
  if (cpu_vendor == "AuthenticAMD") return {.near_ns = 65, .same_l3_ns = 190};
  return {.near_ns = 65, .same_l3_ns = 450};
}

PlacementThresholds refine_thresholds(const PlacementThresholds& prior,
                                      std::span<const double> round_trips_ns) {
  std::vector<double> sorted;
  for (const double ns : round_trips_ns)
    if (ns > 0) sorted.push_back(ns);
  std::sort(sorted.begin(), sorted.end());
  PlacementThresholds refined{.near_ns = refine(prior.near_ns, sorted),
                              .same_l3_ns = refine(prior.same_l3_ns, sorted)};
  // One gap near both priors cannot separate three classes: the far threshold keeps its prior then.
  if (refined.same_l3_ns <= refined.near_ns)
    refined.same_l3_ns = std::max(prior.same_l3_ns, refined.near_ns * 1.6);
  return refined;
}

const char* placement_label(double round_trip_ns, const PlacementThresholds& thresholds,
                            const char* unprobed) {
  if (round_trip_ns < 0) return unprobed;
  if (round_trip_ns < thresholds.near_ns) return "near";
  return round_trip_ns < thresholds.same_l3_ns ? "same_l3" : "far";
}

std::string block_label(double before_ns, double after_ns, const PlacementThresholds& thresholds,
                        const char* unprobed) {
  const std::string before = placement_label(before_ns, thresholds, unprobed);
  return before == placement_label(after_ns, thresholds, unprobed) ? before : "";
}

}  // namespace shunt::bench

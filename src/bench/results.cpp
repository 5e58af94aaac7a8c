#include <shunt/bench/results.h>

#include <algorithm>

namespace shunt::bench {
namespace {

constexpr const char* kPlacements[] = {"near", "same_l3", "far", "network", "single", "device"};

/// The phase that ranks a method: its total, or the one part a floor has.
const PhaseResult* ranking_phase(const MethodResult& method, std::string_view placement) {
  if (method.has_dispatch && method.has_combine) return method.find(placement, "total");
  return method.find(placement, method.has_dispatch ? "dispatch" : "combine");
}

}  // namespace

const PhaseResult* MethodResult::find(std::string_view placement, std::string_view phase) const {
  for (const PhaseResult& result : phases)
    if (result.placement == placement && result.phase == phase) return &result;
  return nullptr;
}

const MethodResult* PointResult::best(std::string_view name, std::string_view placement) const {
  const MethodResult* found = nullptr;
  for (const MethodResult& method : methods) {
    if (method.name != name || method.status != "ok") continue;
    const PhaseResult* phase = ranking_phase(method, placement);
    if (phase == nullptr) continue;
    if (found == nullptr || phase->us.median < ranking_phase(*found, placement)->us.median) found = &method;
  }
  return found;
}

std::string PointResult::main_placement() const {
  std::string best;
  std::int64_t best_full = -1;
  std::int64_t best_rounds = -1;
  for (const char* placement : kPlacements) {
    std::int64_t full = 0;
    std::int64_t rounds = 0;
    for (const MethodResult& method : methods)
      if (const PhaseResult* phase = ranking_phase(method, placement); phase != nullptr) {
        full += phase->rounds >= required_rounds ? 1 : 0;
        rounds += phase->rounds;
      }
    if (rounds == 0 || full < best_full || (full == best_full && rounds <= best_rounds)) continue;
    best = placement;
    best_full = full;
    best_rounds = rounds;
  }
  return best;
}

std::vector<std::string> PointResult::placements() const {
  std::vector<std::string> seen;
  for (const char* placement : kPlacements)
    if (std::any_of(methods.begin(), methods.end(),
                    [&](const MethodResult& method) { return ranking_phase(method, placement) != nullptr; }))
      seen.emplace_back(placement);
  return seen;
}

}  // namespace shunt::bench

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/report.h>

namespace shunt::bench {
namespace {

constexpr const char* kOnDevice = "device";
constexpr const char* kAllPlacements[] = {"near", "same_l3", "far"};

std::string cell(const PhaseResult* phase) {
  if (phase == nullptr) return "-";
  const double us = phase->us.median;
  return us < 10     ? fmt::format("{:.2f}", us)
         : us < 1000 ? fmt::format("{:.1f}", us)
                     : fmt::format("{:.0f}", us);
}

std::string p99(const PhaseResult* phase) {
  return phase == nullptr ? "-" : fmt::format("{:.{}f}", phase->us.p99, phase->us.p99 < 100 ? 1 : 0);
}

std::string ratio(const PhaseResult* phase, double floor_us) {
  if (phase == nullptr || floor_us <= 0) return "-";
  return fmt::format("{:.2f}", phase->us.median / floor_us);
}

double median_of(const PointResult& result, const char* method, const std::string& placement,
                 const char* phase) {
  const MethodResult* found = result.best(method, placement);
  const PhaseResult* part = found == nullptr ? nullptr : found->find(placement, phase);
  return part == nullptr ? 0 : part->us.median;
}

/// floor + empty, 0 where the floor did not run. On GPUs one copy is the floor of both.
double floor_us(const PointResult& result, const char* method, const std::string& placement,
                const char* phase) {
  const double floor = median_of(result, placement == kOnDevice ? "memcpy" : method, placement, phase);
  return floor <= 0 ? 0 : floor + median_of(result, "empty", placement, phase);
}

std::string row(const PointResult& result, const MethodResult& method, const std::string& placement) {
  const PhaseResult* dispatch = method.find(placement, "dispatch");
  const PhaseResult* touch = method.find(placement, "touch");
  const PhaseResult* combine = method.find(placement, "combine");
  const PhaseResult* total = method.find(placement, "total");
  const PhaseResult* any = total != nullptr ? total : dispatch != nullptr ? dispatch : combine;
  const bool floor = method.kind == MethodKind::floor;
  const double moved = static_cast<double>(result.dispatch_bytes + result.combine_bytes);
  const std::string name = method.variant.empty() ? method.name : method.name + " (" + method.variant + ")";
  std::string rate = "-";
  if (!floor && total != nullptr && dispatch->us.median + combine->us.median > 0)
    rate = fmt::format("{:.2f}", moved / (dispatch->us.median + combine->us.median) / 1e3);
  return fmt::format("  {:<22}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>10}{:>7}\n", name, cell(dispatch),
                     cell(touch), cell(combine), cell(total), p99(any), rate,
                     floor ? "-" : ratio(dispatch, floor_us(result, "xcopy", placement, "dispatch")),
                     floor ? "-" : ratio(combine, floor_us(result, "reduce", placement, "combine")),
                     fmt::format("{:.0f}", method.cold_us[3]), any == nullptr ? 0 : any->rounds);
}

/// Means and standard deviations, as benchmarks of GPUs give them.
std::string deviation_line(const MethodResult& method, const std::string& placement) {
  std::string text = fmt::format("  {:<22}", method.name);
  for (const char* name : {"dispatch", "touch", "combine", "total"})
    if (const PhaseResult* phase = method.find(placement, name); phase != nullptr)
      text += fmt::format("  {} {:.2f} ± {:.2f}", name, phase->us.mean, phase->us.stddev);
  return text + "\n";
}

/// What crossed between nodes, where the method counts it.
std::string crossing_line(const MethodResult& method) {
  const Crossing& crossing = method.crossing;
  if (crossing.row_bytes < 0) return {};
  std::string text =
      fmt::format("  {}: {} bytes of rows crossed in dispatch, as counted", method.name, crossing.row_bytes);
  if (crossing.uniform_row_bytes >= 0)
    text += fmt::format(" (uniform routing: {:.0f}, sigma {:.0f})", crossing.uniform_row_bytes,
                        crossing.uniform_row_sigma);
  return text +
         fmt::format("; {} of results, {} of messages\n", crossing.result_bytes, crossing.message_bytes);
}

}  // namespace

std::string format_point(const PointResult& result) {
  const Point& point = result.point;
  const std::string placement = result.main_placement();
  std::string text = fmt::format(
      "\n{}: {} experts, top-{}, hidden {}; {} tokens per {}, {} ranks{}{}; {} -> {}; routing {}\n",
      point.preset, point.num_experts, point.top_k, point.hidden, point.tokens,
      point.dp_size > 1 ? "group" : "rank", point.ranks,
      point.dp_size > 1 ? fmt::format(" in groups of {}", point.dp_size) : "",
      result.nodes > 1 ? fmt::format(" on {} nodes by {}", result.nodes, result.transport) : "",
      dtype_name(point.in_dtype), dtype_name(point.out_dtype), point.routing_label);
  if (placement.empty()) {
    text += "  no block kept: the placement of the ranks changed inside every one; give more --max-seconds\n";
  } else {
    text +=
        fmt::format("  placement {}; {} blocks kept, {} dropped because the placement changed inside them\n",
                    placement, result.blocks_kept, result.blocks_dropped);
    text += fmt::format("  {:<22}{:>9}{:>9}{:>9}{:>9}{:>9}{:>8}{:>8}{:>8}{:>10}{:>7}\n", "method", "dispatch",
                        "touch", "combine", "total", "p99", "GB/s", "disp/fl", "comb/fl", "first", "rounds");
    std::vector<const MethodResult*> rows;
    std::vector<const MethodResult*> floors;
    for (const MethodResult& method : result.methods)
      if (result.best(method.name, placement) == &method)
        (method.kind == MethodKind::floor ? floors : rows).push_back(&method);
    std::stable_sort(rows.begin(), rows.end(), [&](const MethodResult* a, const MethodResult* b) {
      return a->find(placement, "total")->us.median < b->find(placement, "total")->us.median;
    });
    for (const MethodResult* method : rows) text += row(result, *method, placement);
    for (const MethodResult* method : floors) text += row(result, *method, placement);
    text += fmt::format(
        "  median us of the slowest rank{}; p99 of the total; GB/s = (dispatch {} + combine {} bytes) / "
        "(dispatch + combine);\n"
        "  disp/fl = dispatch / ({} + empty), comb/fl = combine / ({} + empty); first = total of the "
        "cold first call\n",
        result.clock == "common" ? ""
        : placement == kOnDevice ? " (by CUDA events: the longest of the ranks' times)"
                                 : " (machines with clocks of their own: the longest of the ranks' times)",
        result.dispatch_bytes, result.combine_bytes, placement == kOnDevice ? "memcpy" : "xcopy",
        placement == kOnDevice ? "memcpy" : "reduce");
    if (placement == kOnDevice) {
      text += "  mean ± standard deviation, us\n";
      for (const auto* kind : {&rows, &floors})
        for (const MethodResult* method : *kind) text += deviation_line(*method, placement);
    }
  }
  std::vector<std::string> unseen;
  for (const char* other : kAllPlacements) {
    if (other == placement || placement == "single" || placement == "network" || placement == kOnDevice)
      continue;
    std::int64_t rounds = 0;
    for (const MethodResult& method : result.methods)
      if (const PhaseResult* phase = method.find(other, "total"); phase != nullptr)
        rounds = rounds == 0 ? phase->rounds : std::min(rounds, phase->rounds);
    unseen.push_back(rounds == 0
                         ? fmt::format("{} not seen", other)
                         : fmt::format("{} seen in {} rounds{}", other, rounds,
                                       rounds < result.required_rounds ? ", too few to compare" : ""));
  }
  if (!unseen.empty()) text += fmt::format("  other placements: {}\n", fmt::join(unseen, "; "));
  for (const MethodResult& method : result.methods)
    if (result.nodes > 1 && method.status == "ok") text += crossing_line(method);
  std::vector<std::pair<std::string, std::string>> others;  // what befell them and why, names
  for (const MethodResult& method : result.methods) {
    if (method.status == "ok" && method.name == "torch" && placement == kOnDevice)
      text +=
          "  torch: times are the host's, with a wait for the GPU after each part; those of the others are "
          "the GPU's events\n";
    if (method.status == "ok") {
      const PhaseResult* phase =
          method.has_combine ? method.find(placement, method.has_dispatch ? "total" : "combine") : nullptr;
      if (phase != nullptr && phase->rounds < result.required_rounds)
        text += fmt::format("  {}: {} rounds only, not compared\n", method.name, phase->rounds);
      continue;
    }
    // What this build lacks is the same at every point: --list and the files say it.
    if (method.status == "skipped" && method.reason.starts_with("this build has no")) continue;
    // Of the candidates of a floor one that ran is enough.
    if (method.kind == MethodKind::floor && result.best(method.name, placement) != nullptr) continue;
    const std::string what = fmt::format("{}: {}", method.status, method.reason);
    const auto found =
        std::find_if(others.begin(), others.end(), [&](const auto& other) { return other.first == what; });
    if (found == others.end())
      others.emplace_back(what, method.name);
    else if (!found->second.ends_with(method.name))
      found->second += ", " + method.name;
  }
  for (const auto& [what, names] : others) text += fmt::format("  {} {}\n", names, what);
  return text;
}

std::string format_methods(std::span<const MethodSpec> methods) {
  std::string text;
  std::string last;
  for (const MethodSpec& spec : methods) {
    if (spec.name == last) continue;
    last = spec.name;
    const std::string reason = spec.unavailable.empty() && spec.look ? spec.look() : spec.unavailable;
    text += fmt::format("{:<18}{:<10}{}{}{}\n", spec.name,
                        !reason.empty()                  ? "absent"
                        : spec.kind == MethodKind::floor ? "floor"
                                                         : "available",
                        spec.summary, spec.opens_sockets ? " (opens sockets: --peers)" : "",
                        reason.empty() ? "" : "; " + reason);
  }
  return text;
}

}  // namespace shunt::bench

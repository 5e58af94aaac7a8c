#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/bench/report.h>

namespace shunt::bench {
namespace {

struct Entry {
  std::string name;
  double total = 0;
  MethodKind kind = MethodKind::rows;
  double moved = 0;  ///< dispatch + combine
};

/// Methods of one kind that may be compared, fastest first.
std::vector<Entry> ranking(const PointResult& result, const std::string& placement, bool rows_only,
                           std::int64_t min_rounds) {
  std::vector<Entry> entries;
  for (const MethodResult& method : result.methods) {
    if (method.status != "ok" || method.kind == MethodKind::floor) continue;
    if (rows_only && method.kind != MethodKind::rows) continue;
    const PhaseResult* total = method.find(placement, "total");
    if (total == nullptr || total->rounds < min_rounds) continue;
    entries.push_back(
        {method.name, total->us.median, method.kind,
         method.find(placement, "dispatch")->us.median + method.find(placement, "combine")->us.median});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.total < b.total; });
  return entries;
}

double floor_us(const PointResult& result, const std::string& placement) {
  const MethodResult* copy = result.best("xcopy", placement);
  const MethodResult* reduce = result.best("reduce", placement);
  if (copy == nullptr || reduce == nullptr) return 0;
  return copy->find(placement, "dispatch")->us.median + reduce->find(placement, "combine")->us.median;
}

std::string range(std::vector<double> values) {
  if (values.empty()) return "-";
  std::sort(values.begin(), values.end());
  const std::string low = fmt::format("{:.2f}", values.front());
  const std::string high = fmt::format("{:.2f}", values.back());
  return low == high ? low : low + " to " + high;
}

/// "shunt (all 7 token counts)" or "shunt (1, 4), dense (8)".
std::string winners(const std::vector<std::pair<std::string, std::int64_t>>& wins) {
  std::map<std::string, std::vector<std::int64_t>> by_name;
  for (const auto& [name, tokens] : wins) by_name[name].push_back(tokens);
  if (by_name.size() == 1)
    return wins.size() == 1 ? fmt::format("{}", wins[0].first)
                            : fmt::format("{} (at all {} token counts)", wins[0].first, wins.size());
  std::vector<std::string> parts;
  for (const auto& [name, tokens] : by_name)
    parts.push_back(fmt::format("{} (at {} tokens)", name, fmt::join(tokens, ", ")));
  return fmt::format("{}", fmt::join(parts, ", "));
}

/// Rounds of the class that a point's table shows: of the method with fewest.
std::int64_t fewest_rounds(const PointResult& result) {
  const std::string placement = result.main_placement();
  std::int64_t fewest = result.required_rounds;
  for (const MethodResult& method : result.methods)
    if (const PhaseResult* total = method.find(placement, "total"); total != nullptr)
      fewest = std::min(fewest, total->rounds);
  return fewest;
}

std::string conclude(const std::vector<const PointResult*>& results) {
  const bool enough = std::any_of(results.begin(), results.end(), [](const PointResult* result) {
    return !ranking(*result, result->main_placement(), false, result->required_rounds).empty();
  });

  std::vector<std::pair<std::string, std::int64_t>> row_wins;
  bool compared = false;
  std::int64_t fewest = results.front()->required_rounds;
  std::string view_name;
  std::vector<double> ahead;
  std::vector<double> view_ahead;
  std::vector<double> above_floor;
  std::vector<double> view_above_floor;
  std::vector<std::string> next_best;
  std::vector<std::string> placements;
  for (const PointResult* result : results) {
    const std::string placement = result->main_placement();
    const std::int64_t min_rounds = enough ? result->required_rounds : 1;
    if (!enough) fewest = std::min(fewest, fewest_rounds(*result));
    const std::vector<Entry> rows = ranking(*result, placement, true, min_rounds);
    const std::vector<Entry> all = ranking(*result, placement, false, min_rounds);
    if (all.empty()) continue;
    if (std::find(placements.begin(), placements.end(), placement) == placements.end())
      placements.push_back(placement);
    const double floor = floor_us(*result, placement);
    if (!rows.empty()) {
      row_wins.emplace_back(rows[0].name, result->point.tokens);
      if (floor > 0) above_floor.push_back(rows[0].moved / floor);
    }
    if (rows.size() > 1 && rows[0].total > 0) {
      ahead.push_back(rows[1].total / rows[0].total);
      if (std::find(next_best.begin(), next_best.end(), rows[1].name) == next_best.end())
        next_best.push_back(rows[1].name);
    }
    compared = true;
    const auto view = std::find_if(all.begin(), all.end(),
                                   [](const Entry& entry) { return entry.kind == MethodKind::view; });
    if (rows.empty() || view == all.end() || view->total <= 0) continue;
    view_name = view->name;
    view_ahead.push_back(rows[0].total / view->total);
    if (floor > 0) view_above_floor.push_back(view->moved / floor);
  }
  const Point& point = results.front()->point;
  std::string text = fmt::format("{}, {} ranks, {}, routing {}", point.preset, point.ranks,
                                 dtype_name(point.in_dtype), point.routing_label);
  if (!compared) return text + ": nothing was measured; give more --max-seconds.\n";
  text += fmt::format(" (placement {}): ", fmt::join(placements, ", "));
  if (!enough)
    text += fmt::format(
        "no class had the {} rounds that a comparison needs, so this is a hint from {} or more only (give "
        "more "
        "--max-seconds): ",
        results.front()->required_rounds, fewest);
  if (!row_wins.empty()) {
    text += fmt::format("the fastest method that delivers rows is {}", winners(row_wins));
    if (!ahead.empty())
      text +=
          fmt::format(", {} times faster than the next best ({})", range(ahead), fmt::join(next_best, ", "));
    if (!above_floor.empty())
      text += fmt::format("; its dispatch and combine together take {} times the floor (xcopy + reduce)",
                          range(above_floor));
    text += ".";
  }
  if (!view_ahead.empty()) {
    const auto [slowest, fastest] = std::minmax_element(view_ahead.begin(), view_ahead.end());
    if (*slowest >= 1.0)
      text += fmt::format(" Where experts can read rows through pointers, use {}: {} times faster again",
                          view_name, range(view_ahead));
    else if (*fastest >= 1.0)
      text += fmt::format(" Where experts can read rows through pointers, try {}: {} times as fast",
                          view_name, range(view_ahead));
    else
      text += fmt::format(" {} (pointers to the rows) is no faster here: {} times as fast", view_name,
                          range(view_ahead));
    if (!view_above_floor.empty()) text += fmt::format(", at {} times that floor", range(view_above_floor));
    text += ".";
  }
  return text + "\n";
}

}  // namespace

std::string format_conclusion(std::span<const PointResult> results) {
  std::vector<std::vector<const PointResult*>> series;
  for (const PointResult& result : results) {
    const auto same = [&](const std::vector<const PointResult*>& one) {
      const Point& a = one.front()->point;
      const Point& b = result.point;
      return a.preset == b.preset && a.routing_label == b.routing_label && a.hidden == b.hidden;
    };
    const auto found = std::find_if(series.begin(), series.end(), same);
    if (found == series.end())
      series.push_back({&result});
    else
      found->push_back(&result);
  }
  std::string text = "\n";
  for (const auto& one : series) text += conclude(one);
  return text;
}

}  // namespace shunt::bench

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
  double low = 0;    ///< 95 % interval of the median total
  double high = 0;
};

/// Which points of a series the comparison holds for.
struct Coverage {
  std::size_t asked = 0;
  std::vector<std::int64_t> too_few;  ///< Token counts without the rounds that a comparison needs
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
    entries.push_back({.name = method.name,
                       .total = total->us.median,
                       .kind = method.kind,
                       .moved = method.find(placement, "dispatch")->us.median +
                                method.find(placement, "combine")->us.median,
                       .low = total->us.median_low,
                       .high = total->us.median_high});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.total < b.total; });
  return entries;
}

double floor_us(const PointResult& result, const std::string& placement) {
  if (const MethodResult* device_copy = result.best("memcpy", placement); device_copy != nullptr)
    return device_copy->find(placement, "total")->us.median;
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

/// "shunt (at all 7 token counts)", "shunt (at 1, 4 tokens), dense (at 8 tokens)" or, where some lack rounds,
/// "shunt (at 3 of 7 token counts; too few rounds at 16, 32)".
std::string winners(const std::vector<std::pair<std::string, std::int64_t>>& wins, const Coverage& coverage) {
  std::map<std::string, std::vector<std::int64_t>> by_name;
  for (const auto& [name, tokens] : wins) by_name[name].push_back(tokens);
  const std::string lacking =
      coverage.too_few.empty() ? "" : fmt::format("too few rounds at {}", fmt::join(coverage.too_few, ", "));
  if (by_name.size() == 1) {
    const std::string& name = wins[0].first;
    if (!lacking.empty())
      return fmt::format("{} (at {} of {} token counts; {})", name, wins.size(), coverage.asked, lacking);
    return wins.size() == 1 ? name : fmt::format("{} (at all {} token counts)", name, wins.size());
  }
  std::vector<std::string> parts;
  for (const auto& [name, tokens] : by_name)
    parts.push_back(fmt::format("{} (at {} tokens)", name, fmt::join(tokens, ", ")));
  if (!lacking.empty()) parts.push_back(lacking);
  return fmt::format("{}", fmt::join(parts, ", "));
}

/// Lead over the next best, as far as the intervals of the medians show one.
std::string lead(const std::vector<double>& ahead, const std::vector<std::int64_t>& undecided,
                 const std::vector<std::string>& next_best) {
  const std::string others = fmt::format("{}", fmt::join(next_best, ", "));
  if (ahead.empty())
    return undecided.empty() ? "" : fmt::format(", but no difference to the next best ({}) is shown", others);
  std::string text = fmt::format(", {} times faster than the next best ({})", range(ahead), others);
  if (!undecided.empty())
    text += fmt::format(", no difference shown at {} tokens", fmt::join(undecided, ", "));
  return text;
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
  std::vector<std::int64_t> undecided;
  std::vector<std::string> next_best;
  std::vector<std::string> placements;
  Coverage coverage{.asked = results.size(), .too_few = {}};
  for (const PointResult* result : results) {
    const std::string placement = result->main_placement();
    const std::int64_t min_rounds = enough ? result->required_rounds : 1;
    if (!enough) fewest = std::min(fewest, fewest_rounds(*result));
    const std::vector<Entry> rows = ranking(*result, placement, true, min_rounds);
    const std::vector<Entry> all = ranking(*result, placement, false, min_rounds);
    if (rows.empty()) coverage.too_few.push_back(result->point.tokens);
    if (all.empty()) continue;
    if (std::find(placements.begin(), placements.end(), placement) == placements.end())
      placements.push_back(placement);
    const double floor = floor_us(*result, placement);
    if (!rows.empty()) {
      row_wins.emplace_back(rows[0].name, result->point.tokens);
      if (floor > 0) above_floor.push_back(rows[0].moved / floor);
    }
    if (rows.size() > 1 && rows[0].total > 0) {
      if (rows[0].high >= rows[1].low)
        undecided.push_back(result->point.tokens);
      else
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
    text += fmt::format("the fastest method that delivers rows is {}", winners(row_wins, coverage));
    text += lead(ahead, undecided, next_best);
    if (!above_floor.empty())
      text += fmt::format("; its dispatch and combine together take {} times the floor ({})",
                          range(above_floor), placements.front() == "device" ? "memcpy" : "xcopy + reduce");
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

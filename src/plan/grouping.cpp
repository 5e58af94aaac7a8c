#include <shunt/plan/grouping.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numeric>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt::plan {
namespace {

struct Evenness {
  double max_over_mean = 1;
  double mean_over_max = 1;
};

Evenness evenness(const std::vector<double>& loads) {
  const double most = *std::max_element(loads.begin(), loads.end());
  const double mean = std::accumulate(loads.begin(), loads.end(), 0.0) / static_cast<double>(loads.size());
  if (most == 0) return {};
  return {most / mean, mean / most};
}

std::vector<double> by_node(const std::vector<double>& ranks, std::int64_t nodes) {
  std::vector<double> sums(static_cast<std::size_t>(nodes));
  const std::size_t each = ranks.size() / sums.size();
  for (std::size_t r = 0; r < ranks.size(); ++r) sums[r / each] += ranks[r];
  return sums;
}

Placement place(const std::string& strategy, const std::vector<float>& loads, const PlacementShape& shape) {
  const auto experts = static_cast<std::int64_t>(loads.size());
  if (strategy == "linear") return place_linear(experts, shape.ranks);
  if (strategy == "round_robin") return place_round_robin(experts, shape.ranks);
  if (strategy == "hash") return place_hashed(experts, shape.ranks);
  if (strategy == "locality") return place_by_group(loads, shape);
  return place_balanced(loads, shape);
}

}  // namespace

const std::vector<std::string>& grouping_strategies() {
  static const std::vector<std::string> names = {"linear", "round_robin", "hash", "locality",
                                                 "latency_balanced"};
  return names;
}

std::vector<float> read_loads(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw Error(Errc::io, fmt::format("{}: cannot read this file", path));
  std::vector<float> sums;
  std::int64_t line = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    ++line;
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    std::vector<float> values;
    for (std::size_t at = begin; at < end;) {
      const std::size_t stop = std::min(text.find_first_of(", \t\r\n", at), end);
      if (stop > at) {
        float value = 0;
        const auto [last, code] = std::from_chars(text.data() + at, text.data() + stop, value);
        if (code != std::errc{} || last != text.data() + stop || !(value >= 0) || !std::isfinite(value))
          throw Error(Errc::io, fmt::format("{}:{}: \"{}\" is not a load: a number of at least 0", path, line,
                                            text.substr(at, stop - at)));
        values.push_back(value);
      }
      at = stop + 1;
    }
    if (!values.empty()) {
      if (sums.empty()) sums.resize(values.size());
      if (values.size() != sums.size())
        throw Error(Errc::io, fmt::format("{}:{}: {} loads after lines with {}", path, line, values.size(),
                                          sums.size()));
      for (std::size_t e = 0; e < sums.size(); ++e) sums[e] += values[e];
    }
    begin = end + 1;
  }
  if (sums.empty()) throw Error(Errc::io, fmt::format("{}: there are no loads", path));
  return sums;
}

std::vector<float> power_law_loads(std::int64_t experts, double alpha, std::uint64_t seed) {
  if (experts < 1 || experts > (1 << 16))
    throw Error(Errc::invalid_argument, fmt::format("experts {}: expected a number in [1, 65536]", experts));
  if (!(alpha >= 0 && alpha <= 10))
    throw Error(Errc::invalid_argument, fmt::format("power law {}: expected an exponent in [0, 10]", alpha));
  std::vector<float> loads(static_cast<std::size_t>(experts));
  for (std::size_t i = 0; i < loads.size(); ++i)
    loads[i] = static_cast<float>(1000 * std::pow(static_cast<double>(i + 1), -alpha));
  // A counter-based shuffle, so that every platform gives the same order.
  std::uint64_t state = seed;
  const auto next = [&state] {
    state += 0x9e3779b97f4a7c15U;
    std::uint64_t z = state;
    z = (z ^ (z >> 30U)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27U)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31U);
  };
  for (std::size_t i = loads.size() - 1; i > 0; --i) std::swap(loads[i], loads[next() % (i + 1)]);
  return loads;
}

Report report_grouping(const std::vector<float>& loads, const GroupingOptions& o) {
  if (o.shape.nodes < 1 || o.shape.ranks < 1 || o.shape.ranks % o.shape.nodes != 0)
    throw Error(Errc::invalid_argument, fmt::format("{} nodes do not divide {} ranks: every node has as many",
                                                    o.shape.nodes, o.shape.ranks));
  for (const std::string& strategy : o.strategies) {
    const auto& names = grouping_strategies();
    if (std::find(names.begin(), names.end(), strategy) == names.end())
      throw Error(Errc::invalid_argument, fmt::format("strategy \"{}\" does not exist; {}", strategy,
                                                      allowed_names(strategy, names)));
  }
  Report report("plan_grouping");
  const auto experts = static_cast<std::int64_t>(loads.size());
  report.head.set("experts", experts)
      .set("places", o.shape.places)
      .set("groups", o.shape.groups)
      .set("nodes", o.shape.nodes)
      .set("ranks", o.shape.ranks);
  Table table{"strategies",
              {{"strategy", "strategy"},
               {"places", "places"},
               {"rank_max_over_mean", "ranks max/mean"},
               {"rank_balancedness", "balancedness", Unit::share},
               {"node_max_over_mean", "nodes max/mean"},
               {"moved_places", "moved from linear"},
               {"moved_bytes", "bytes moved", Unit::bytes, o.expert_bytes == 0},
               {"experts_of_places", "experts", Unit::none, true},
               {"places_of_ranks", "offsets", Unit::none, true}},
              {}};
  std::string best;
  double least = 0;
  for (const std::string& strategy : o.strategies.empty() ? grouping_strategies() : o.strategies) {
    Placement placement;
    try {
      placement = place(strategy, loads, o.shape);
    } catch (const Error& error) {
      if (!o.strategies.empty()) throw;
      report.notes.push_back(fmt::format("{} is left out: {}", strategy, error.what()));
      continue;
    }
    const std::vector<double> ranks = rank_loads(placement, loads);
    const Evenness rank = evenness(ranks);
    const Evenness node = evenness(by_node(ranks, o.shape.nodes));
    RecordValue moved;
    RecordValue bytes;
    if (experts % o.shape.ranks == 0) {
      const std::int64_t count = moved_places(place_linear(experts, o.shape.ranks), placement);
      moved = count;
      if (o.expert_bytes > 0) bytes = std::round(static_cast<double>(count) * o.expert_bytes);
    }
    std::vector<std::int64_t> places(placement.experts.begin(), placement.experts.end());
    table.rows.push_back({strategy, static_cast<std::int64_t>(places.size()), rank.max_over_mean,
                          rank.mean_over_max, node.max_over_mean, moved, bytes, places, placement.offsets});
    if (best.empty() || rank.max_over_mean < least) {
      best = strategy;
      least = rank.max_over_mean;
    }
  }
  if (best.empty())
    throw Error(Errc::invalid_argument, fmt::format("no strategy fits: {}", report.notes.front()));
  report.head.set("best", best);
  report.summary.push_back(fmt::format("{} experts in {} places on {} ranks of {} nodes, {} groups", experts,
                                       o.shape.places, o.shape.ranks, o.shape.nodes, o.shape.groups));
  report.summary.push_back(
      fmt::format("{} is the most even: the busiest rank has {:.3f} times the mean load", best, least));
  report.tables.push_back(table);
  return report;
}

}  // namespace shunt::plan

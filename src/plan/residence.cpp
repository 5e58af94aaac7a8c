#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/plan/affinity.h>
#include <shunt/plan/grouping.h>

namespace shunt::plan {
namespace {

using Index = std::size_t;

constexpr double kBytesPerUs = 1e3;  // Of 1 GB/s
constexpr std::size_t kPairsShown = 10;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

/// What one rank sends and receives, in rows of the dispatch; the combine sends the same rows back.
struct Links {
  double near_out = 0, near_in = 0;
  double far_out = 0, far_in = 0;
};

/// Walks the tokens of all ranks and counts rows on every tier.
class Scorer {
 public:
  Scorer(const Machine& machine, const Placement& placement, const ResidenceOptions& options, Index experts)
      : machine_(machine),
        both_(options.dispatch_row + options.combine_row),
        ranks_(static_cast<Index>(placement.ranks())),
        domain_ranks_(std::min<Index>(ranks_, static_cast<Index>(machine.domain()))),
        relayed_(options.path == ExchangePath::hierarchical || options.path == ExchangePath::rail_aligned ||
                 (options.path == ExchangePath::automatic && ranks_ > domain_ranks_)),
        to_needed_(options.path == ExchangePath::hierarchical),
        copies_(experts),
        links_(ranks_),
        rows_(ranks_) {
    for (Index rank = 0; rank < ranks_; ++rank)
      for (std::int64_t i = placement.offsets[rank]; i < placement.offsets[rank + 1]; ++i)
        copies_[static_cast<Index>(placement.experts[static_cast<Index>(i)])].push_back(rank);
  }

  void add(Index source, std::span<const std::int32_t> chosen) {
    std::vector<Index> targets;
    for (const std::int32_t e : chosen) {
      if (e < 0) continue;
      const Index rank = copy(static_cast<Index>(e), source);
      rows_[rank] += 1;
      targets.push_back(rank);
    }
    if (targets.empty()) return;
    std::sort(targets.begin(), targets.end());
    targets.erase(std::unique(targets.begin(), targets.end()), targets.end());
    ++tokens_;
    score_.ranks_per_token += static_cast<double>(targets.size());
    const Index home = source / domain_ranks_;
    for (Index i = 0; i < targets.size();) {
      Index end = i;
      const Index domain = targets[i] / domain_ranks_;
      while (end < targets.size() && targets[end] / domain_ranks_ == domain) ++end;
      score_.domains_per_token += 1;
      const std::span<const Index> there(&targets[i], end - i);
      if (domain == home) {
        for (const Index rank : there) near(source, rank);
      } else if (relayed_) {
        const Index aligned = domain * domain_ranks_ + source % domain_ranks_;
        const Index landing = to_needed_ ? there[0] : std::min(aligned, ranks_ - 1);
        far(source, landing);
        for (const Index rank : there) near(landing, rank);
      } else {
        for (const Index rank : there) far(source, rank);
      }
      i = end;
    }
  }

  [[nodiscard]] ResidenceScore score() const {
    ResidenceScore result = score_;
    if (tokens_ > 0) {
      result.ranks_per_token /= tokens_;
      result.domains_per_token /= tokens_;
    }
    const double all = std::accumulate(rows_.begin(), rows_.end(), 0.0);
    const double most = *std::max_element(rows_.begin(), rows_.end());
    result.load_max_over_mean = all > 0 ? most * static_cast<double>(ranks_) / all : 1;
    for (const Links& link : links_) {
      const double near =
          std::max(link.near_out, link.near_in) * both_ / (machine_.scale_up.gb_per_s * kBytesPerUs);
      const double far =
          std::max(link.far_out, link.far_in) * both_ / (machine_.network.gb_per_s * kBytesPerUs);
      result.busiest_us = std::max({result.busiest_us, near, far});
    }
    return result;
  }

 private:
  [[nodiscard]] Index copy(Index expert, Index source) const {
    const std::vector<Index>& at = copies_[expert];
    const Index home = source / domain_ranks_;
    Index inside = ranks_;
    for (const Index rank : at) {
      if (rank == source) return rank;
      if (inside == ranks_ && rank / domain_ranks_ == home) inside = rank;
    }
    return inside != ranks_ ? inside : at[source % at.size()];
  }

  void near(Index from, Index to) {
    if (from == to) {
      score_.local_rows += 1;
      return;
    }
    score_.near_bytes += both_;
    links_[from].near_out += 1;
    links_[to].near_in += 1;
  }

  void far(Index from, Index to) {
    score_.network_bytes += both_;
    links_[from].far_out += 1;
    links_[to].far_in += 1;
    const RankPath path =
        path_between(machine_, static_cast<std::int64_t>(from), static_cast<std::int64_t>(to));
    if (path.tier == Tier::spine) score_.spine_bytes += both_;
    if (path.by == "nvlink + rail") score_.near_bytes += both_;
  }

  const Machine& machine_;
  double both_;
  Index ranks_;
  Index domain_ranks_;
  bool relayed_;
  bool to_needed_;
  std::vector<std::vector<Index>> copies_;  ///< Ranks of each expert
  std::vector<Links> links_;
  std::vector<double> rows_;
  double tokens_ = 0;
  ResidenceScore score_;
};

Index experts_of(std::span<const Routing> tokens) {
  if (tokens.empty()) refuse("there are no tokens");
  return static_cast<Index>(tokens[0].num_experts);
}

std::vector<float> loads_of(std::span<const Routing> tokens) {
  std::vector<float> loads(experts_of(tokens));
  for (const Routing& routing : tokens)
    for (const std::int32_t e : routing.ids)
      if (e >= 0) loads[static_cast<Index>(e)] += 1;
  return loads;
}

Placement place(const std::string& strategy, std::span<const Routing> tokens, const std::vector<float>& loads,
                std::int64_t domains, const ResidenceOptions& o) {
  const auto experts = static_cast<std::int64_t>(loads.size());
  if (strategy == "linear") return place_linear(experts, o.shape.ranks);
  if (strategy == "round_robin") return place_round_robin(experts, o.shape.ranks);
  if (strategy == "hash") return place_hashed(experts, o.shape.ranks);
  if (strategy == "locality") return place_by_group(loads, o.shape);
  if (strategy == "latency_balanced") return place_balanced(loads, o.shape);
  return place_by_affinity(tokens, o.shape.ranks, domains, o.max_imbalance);
}

/// Pairs of experts by how much more often than by chance tokens choose both.
Table pairs_table(std::span<const Routing> tokens, const std::vector<float>& loads) {
  const Index experts = loads.size();
  std::vector<float> together(experts * experts);
  double count = 0;
  for (const Routing& routing : tokens) {
    const auto k = static_cast<Index>(routing.top_k);
    for (Index t = 0; t < static_cast<Index>(routing.num_tokens); ++t) {
      ++count;
      for (Index i = 0; i < k; ++i)
        for (Index j = 0; j < k; ++j) {
          const std::int32_t a = routing.ids[t * k + i];
          const std::int32_t b = routing.ids[t * k + j];
          if (a >= 0 && b > a) together[static_cast<Index>(a) * experts + static_cast<Index>(b)] += 1;
        }
    }
  }
  struct Pair {
    Index a = 0, b = 0;
    double times = 0, expected = 0;
  };
  std::vector<Pair> pairs;
  for (Index a = 0; a < experts; ++a)
    for (Index b = a + 1; b < experts; ++b) {
      const double times = static_cast<double>(together[a * experts + b]);
      const double expected =
          static_cast<double>(loads[a]) * static_cast<double>(loads[b]) / std::max(count, 1.0);
      if (times > expected) pairs.push_back({a, b, times, expected});
    }
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& x, const Pair& y) { return x.times - x.expected > y.times - y.expected; });
  pairs.resize(std::min(pairs.size(), kPairsShown));
  Table table{
      "pairs",
      {{"a", "expert"}, {"b", "and"}, {"tokens", "tokens with both"}, {"expected", "expected by chance"}},
      {}};
  for (const Pair& pair : pairs)
    table.rows.push_back({static_cast<std::int64_t>(pair.a), static_cast<std::int64_t>(pair.b), pair.times,
                          std::round(pair.expected * 10) / 10});
  return table;
}

}  // namespace

const std::vector<std::string>& residence_strategies() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> all = grouping_strategies();
    all.emplace_back("affinity");
    return all;
  }();
  return names;
}

ResidenceScore score_residence(const Machine& machine, std::span<const Routing> tokens,
                               const Placement& placement, const ResidenceOptions& options) {
  const Index experts = experts_of(tokens);
  if (static_cast<std::int64_t>(tokens.size()) != placement.ranks() || placement.ranks() > machine.gpus())
    refuse(fmt::format("tokens of {} ranks, a placement on {}, and {} GPUs", tokens.size(), placement.ranks(),
                       machine.gpus()));
  std::vector<char> placed(experts);
  for (const std::int32_t e : placement.experts) {
    if (e < 0 || static_cast<Index>(e) >= experts)
      refuse(fmt::format("the placement has expert {}, the tokens choose of {}", e, experts));
    placed[static_cast<Index>(e)] = 1;
  }
  const auto missing = std::find(placed.begin(), placed.end(), 0);
  if (missing != placed.end())
    refuse(fmt::format("the placement leaves out expert {}", missing - placed.begin()));
  Scorer scorer(machine, placement, options, experts);
  for (Index rank = 0; rank < tokens.size(); ++rank) {
    const Routing& routing = tokens[rank];
    const auto k = static_cast<Index>(routing.top_k);
    for (Index t = 0; t < static_cast<Index>(routing.num_tokens); ++t)
      scorer.add(rank, std::span(routing.ids).subspan(t * k, k));
  }
  return scorer.score();
}

Report report_residence(const Machine& machine, std::span<const Routing> tokens, const ResidenceOptions& o) {
  for (const std::string& strategy : o.strategies) {
    const auto& names = residence_strategies();
    if (std::find(names.begin(), names.end(), strategy) == names.end())
      refuse(fmt::format("strategy \"{}\" does not exist; {}", strategy, allowed_names(strategy, names)));
  }
  const std::vector<float> loads = loads_of(tokens);
  const auto experts = static_cast<std::int64_t>(loads.size());
  const std::int64_t domain = std::min(machine.domain(), o.shape.ranks);
  if (domain < 1 || o.shape.ranks % domain != 0)
    refuse(fmt::format("{} ranks do not fill domains of {} GPUs", o.shape.ranks, machine.domain()));
  const std::int64_t domains = o.shape.ranks / domain;
  Report report("plan_affinity");
  report.head.set("node", machine.node.name)
      .set("ranks", o.shape.ranks)
      .set("domains", domains)
      .set("experts", experts)
      .set("places", o.shape.places)
      .set("dispatch_row_bytes", o.dispatch_row)
      .set("combine_row_bytes", o.combine_row)
      .set("path", exchange_path_name(o.path));
  Table table{"strategies",
              {{"strategy", "strategy"},
               {"domains_per_token", "domains of a token"},
               {"ranks_per_token", "ranks of a token"},
               {"near_bytes", machine.node.gpu.has_scale_up ? "scale-up" : "PCIe", Unit::bytes},
               {"network_bytes", "network", Unit::bytes},
               {"spine_bytes", "of it spine", Unit::bytes},
               {"network_over_linear", "network x", Unit::none},
               {"load_max_over_mean", "load max/mean"},
               {"busiest_us", "busiest link us"},
               {"moved_places", "moved", Unit::none},
               {"moved_bytes", "bytes moved", Unit::bytes, o.expert_bytes == 0},
               {"local_rows", "rows that stay", Unit::none, true},
               {"experts_of_places", "experts", Unit::none, true},
               {"places_of_ranks", "offsets", Unit::none, true}},
              {}};
  const bool divides = experts % o.shape.ranks == 0;
  ResidenceScore before;
  Placement linear;
  if (divides) {
    linear = place_linear(experts, o.shape.ranks);
    before = score_residence(machine, tokens, linear, o);
  }
  std::string best;
  std::pair<double, double> least;
  const auto rounded = [](double value) { return std::round(value * 1e4) / 1e4; };
  for (const std::string& strategy : o.strategies.empty() ? residence_strategies() : o.strategies) {
    Placement placement;
    try {
      placement = place(strategy, tokens, loads, domains, o);
    } catch (const Error& error) {
      if (!o.strategies.empty()) throw;
      report.notes.push_back(fmt::format("{} is left out: {}", strategy, error.what()));
      continue;
    }
    const ResidenceScore score = score_residence(machine, tokens, placement, o);
    RecordValue ratio;
    RecordValue moved;
    RecordValue bytes;
    if (divides) {
      if (before.network_bytes > 0) ratio = rounded(score.network_bytes / before.network_bytes);
      const std::int64_t places = moved_places(linear, placement);
      moved = places;
      if (o.expert_bytes > 0) bytes = std::round(static_cast<double>(places) * o.expert_bytes);
    }
    const std::vector<std::int64_t> where(placement.experts.begin(), placement.experts.end());
    table.rows.push_back({strategy, rounded(score.domains_per_token), rounded(score.ranks_per_token),
                          std::round(score.near_bytes), std::round(score.network_bytes),
                          std::round(score.spine_bytes), ratio, rounded(score.load_max_over_mean),
                          rounded(score.busiest_us), moved, bytes, score.local_rows, where,
                          placement.offsets});
    // What ends last counts; of equals, fewer bytes on the network.
    const std::pair<double, double> cost = {score.busiest_us, score.network_bytes};
    if (best.empty() || cost < least) {
      best = strategy;
      least = cost;
    }
  }
  if (best.empty()) refuse(fmt::format("no strategy fits: {}", report.notes.front()));
  std::int64_t count = 0;
  for (const Routing& routing : tokens) count += routing.num_tokens;
  report.head.set("tokens", count).set("best", best);
  report.summary.push_back(
      fmt::format("{} experts on {} ranks in {} scale-up domains of {}, {} tokens with top-{}", experts,
                  o.shape.ranks, domains, machine.node.name, count, tokens[0].top_k));
  report.summary.push_back(fmt::format(
      "{}: its busiest link works {:.1f} us for one layer's dispatch and combine", best, least.first));
  report.tables.push_back(table);
  report.tables.push_back(pairs_table(tokens, loads));
  if (report.tables.back().rows.empty())
    report.notes.emplace_back("no two experts are chosen together more often than by chance");
  return report;
}

}  // namespace shunt::plan

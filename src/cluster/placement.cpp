#include <shunt/cluster/placement.h>

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt {
namespace {

using Index = std::size_t;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

void divides(const char* what, std::int64_t parts, const char* whole, std::int64_t count) {
  if (parts < 1 || count % parts != 0)
    refuse(fmt::format("placement: {} {} do not divide {} {}", parts, what, count, whole));
}

struct Packed {
  std::vector<Index> pack;
  std::vector<Index> rank;  ///< In its pack
};

/// As many items into each pack, the heaviest first, each into the lightest pack that has room.
Packed pack_evenly(const std::vector<float>& weights, Index packs) {
  const Index room = weights.size() / packs;
  Packed packed{std::vector<Index>(weights.size()), std::vector<Index>(weights.size())};
  if (room == 1) {
    std::iota(packed.pack.begin(), packed.pack.end(), Index{0});
    return packed;
  }
  std::vector<Index> order(weights.size());
  std::iota(order.begin(), order.end(), Index{0});
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return weights[a] > weights[b]; });
  std::vector<float> sums(packs);
  std::vector<Index> counts(packs);
  for (const Index item : order) {
    Index best = packs;
    for (Index p = 0; p < packs; ++p)
      if (counts[p] < room && (best == packs || sums[p] < sums[best])) best = p;
    packed.pack[item] = best;
    packed.rank[item] = counts[best]++;
    sums[best] += weights[item];
  }
  return packed;
}

/// Expert of each place: all once, then copies of whichever has most load for each copy.
std::vector<Index> replicate(const std::vector<float>& weights, Index places, std::vector<Index>& copies) {
  std::vector<Index> expert(places);
  copies.assign(weights.size(), 1);
  for (Index i = 0; i < places; ++i) {
    if (i < weights.size()) {
      expert[i] = i;
      continue;
    }
    Index most = 0;
    for (Index e = 1; e < weights.size(); ++e)
      if (weights[e] / static_cast<float>(copies[e]) > weights[most] / static_cast<float>(copies[most]))
        most = e;
    expert[i] = most;
    ++copies[most];
  }
  return expert;
}

std::vector<std::int64_t> even_offsets(std::int64_t places, std::int64_t ranks) {
  std::vector<std::int64_t> offsets;
  for (std::int64_t r = 0; r <= ranks; ++r) offsets.push_back(r * (places / ranks));
  return offsets;
}

/// Order of experts that puts whole groups on nodes of equal load: the experts of node 0, of node 1, ...
std::vector<Index> groups_on_nodes(const std::vector<float>& loads, Index groups, Index nodes) {
  const Index size = loads.size() / groups;
  std::vector<float> sums(groups);
  for (Index e = 0; e < loads.size(); ++e) sums[e / size] += loads[e];
  const Packed packed = pack_evenly(sums, nodes);
  std::vector<Index> order(loads.size());
  for (Index e = 0; e < loads.size(); ++e) {
    const Index group = e / size;
    order[(packed.pack[group] * (groups / nodes) + packed.rank[group]) * size + e % size] = e;
  }
  return order;
}

void check(const std::vector<float>& loads, const PlacementShape& shape) {
  const auto experts = static_cast<std::int64_t>(loads.size());
  if (experts == 0) refuse("placement: there are no experts");
  divides("groups", shape.groups, "experts", experts);
  divides("nodes", shape.nodes, "ranks", shape.ranks);
  divides("ranks", shape.ranks, "places", shape.places);
  if (shape.places < experts)
    refuse(fmt::format("placement: {} places for {} experts", shape.places, experts));
  for (std::size_t e = 0; e < loads.size(); ++e)
    if (!(loads[e] >= 0 && loads[e] < 1e30F))
      refuse(fmt::format("placement: expert {} has a load of {}", e, loads[e]));
}

}  // namespace

Placement place_linear(std::int64_t experts, std::int64_t ranks) {
  divides("ranks", ranks, "experts", experts);
  Placement placement{std::vector<std::int32_t>(static_cast<Index>(experts)), even_offsets(experts, ranks)};
  std::iota(placement.experts.begin(), placement.experts.end(), 0);
  return placement;
}

Placement place_round_robin(std::int64_t experts, std::int64_t ranks) {
  divides("ranks", ranks, "experts", experts);
  Placement placement{{}, even_offsets(experts, ranks)};
  for (std::int64_t r = 0; r < ranks; ++r)
    for (std::int64_t e = r; e < experts; e += ranks)
      placement.experts.push_back(static_cast<std::int32_t>(e));
  return placement;
}

Placement place_hashed(std::int64_t experts, std::int64_t ranks) {
  if (ranks < 1) refuse(fmt::format("placement: {} ranks", ranks));
  std::vector<std::vector<std::int32_t>> of(static_cast<Index>(ranks));
  for (std::int64_t e = 0; e < experts; ++e) {
    auto hash = static_cast<std::uint64_t>(e) + 0x9e3779b97f4a7c15U;  // splitmix64
    hash = (hash ^ (hash >> 30U)) * 0xbf58476d1ce4e5b9U;
    hash = (hash ^ (hash >> 27U)) * 0x94d049bb133111ebU;
    hash ^= hash >> 31U;
    of[hash % static_cast<std::uint64_t>(ranks)].push_back(static_cast<std::int32_t>(e));
  }
  Placement placement{{}, {0}};
  for (const auto& rank : of) {
    placement.experts.insert(placement.experts.end(), rank.begin(), rank.end());
    placement.offsets.push_back(static_cast<std::int64_t>(placement.experts.size()));
  }
  return placement;
}

Placement place_by_group(const std::vector<float>& loads, const PlacementShape& shape) {
  PlacementShape once = shape;
  once.places = static_cast<std::int64_t>(loads.size());
  check(loads, once);
  divides("nodes", shape.nodes, "groups", shape.groups);
  Placement placement{{}, even_offsets(once.places, shape.ranks)};
  for (const Index e :
       groups_on_nodes(loads, static_cast<Index>(shape.groups), static_cast<Index>(shape.nodes)))
    placement.experts.push_back(static_cast<std::int32_t>(e));
  return placement;
}

Placement place_balanced(const std::vector<float>& loads, const PlacementShape& shape) {
  check(loads, shape);
  const bool by_node = shape.groups % shape.nodes == 0;
  const auto groups = static_cast<Index>(by_node ? shape.groups : 1);
  const auto nodes = static_cast<Index>(by_node ? shape.nodes : 1);
  const std::vector<Index> order = groups_on_nodes(loads, groups, nodes);
  const Index experts = loads.size() / nodes;  // Of one node, as places and ranks
  const Index places = static_cast<Index>(shape.places) / nodes;
  const Index ranks = static_cast<Index>(shape.ranks) / nodes;
  Placement placement{std::vector<std::int32_t>(static_cast<Index>(shape.places)),
                      even_offsets(shape.places, shape.ranks)};
  for (Index node = 0; node < nodes; ++node) {
    std::vector<float> weights(experts);
    for (Index i = 0; i < experts; ++i) weights[i] = loads[order[node * experts + i]];
    std::vector<Index> copies;
    const std::vector<Index> expert = replicate(weights, places, copies);
    std::vector<float> shares(places);
    for (Index i = 0; i < places; ++i) shares[i] = weights[expert[i]] / static_cast<float>(copies[expert[i]]);
    const Packed packed = pack_evenly(shares, ranks);
    for (Index i = 0; i < places; ++i) {
      placement.experts[node * places + packed.pack[i] * (places / ranks) + packed.rank[i]] =
          static_cast<std::int32_t>(order[node * experts + expert[i]]);
    }
  }
  return placement;
}

std::vector<double> rank_loads(const Placement& placement, const std::vector<float>& loads) {
  std::vector<std::int64_t> copies(loads.size());
  for (const std::int32_t e : placement.experts) ++copies[static_cast<Index>(e)];
  std::vector<double> result(static_cast<Index>(placement.ranks()));
  for (Index r = 0; r < result.size(); ++r)
    for (std::int64_t i = placement.offsets[r]; i < placement.offsets[r + 1]; ++i) {
      const auto e = static_cast<Index>(placement.experts[static_cast<Index>(i)]);
      result[r] += static_cast<double>(loads[e]) / static_cast<double>(copies[e]);
    }
  return result;
}

std::int64_t moved_places(const Placement& from, const Placement& to) {
  std::int64_t moved = 0;
  for (std::int64_t r = 0; r < to.ranks(); ++r) {
    const auto rank = static_cast<Index>(r);
    const auto part = [rank](const Placement& p) {
      std::vector<std::int32_t> experts(p.experts.begin() + p.offsets[rank],
                                        p.experts.begin() + p.offsets[rank + 1]);
      std::sort(experts.begin(), experts.end());
      return experts;
    };
    const std::vector<std::int32_t> had = r < from.ranks() ? part(from) : std::vector<std::int32_t>{};
    std::vector<std::int32_t> wants = part(to);
    wants.erase(std::unique(wants.begin(), wants.end()), wants.end());
    for (const std::int32_t e : wants) moved += std::binary_search(had.begin(), had.end(), e) ? 0 : 1;
  }
  return moved;
}

}  // namespace shunt

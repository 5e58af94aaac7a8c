#include <shunt/cluster/volume.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/layout/partition.h>
#include <shunt/layout/traffic.h>

namespace shunt {
namespace {

std::vector<std::int64_t> sizes_of(std::int64_t experts, std::int32_t places) {
  const ExpertPartition partition{static_cast<std::int32_t>(experts), places};
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(places));
  for (std::int32_t place = 0; place < places; ++place)
    sizes[static_cast<std::size_t>(place)] = partition.count(place);
  return sizes;
}

}  // namespace

Destinations expected_destinations(const RoutedShape& shape) {
  if (shape.ranks < 1 || shape.nodes < 1 || shape.ranks % shape.nodes != 0) {
    throw Error(Errc::invalid_argument, fmt::format("{} ranks on {} nodes: the nodes must divide the ranks",
                                                    shape.ranks, shape.nodes));
  }
  if (shape.topk < 1 || shape.topk > shape.experts) {
    throw Error(Errc::invalid_argument, fmt::format("top-k {} of {} experts: allowed are 1 to {}", shape.topk,
                                                    shape.experts, shape.experts));
  }
  const double nodes = shape.nodes;
  const double ranks = shape.ranks;
  Destinations d;
  if (shape.dealt_in_turn) {
    d.ranks = std::min(static_cast<double>(shape.topk), ranks);
    d.nodes = std::min(static_cast<double>(shape.topk), nodes);
  } else {
    // A limited token draws from the experts of `reach` nodes, which are alike; without a limit, from all.
    const std::int32_t reach = shape.node_limit > 0 ? std::min(shape.node_limit, shape.nodes) : shape.nodes;
    const std::int64_t experts = shape.experts * reach / shape.nodes;
    if (shape.topk > experts) {
      throw Error(Errc::invalid_argument,
                  fmt::format("top-k {} of the {} experts that {} of {} nodes hold: allowed are 1 to {}",
                              shape.topk, experts, reach, shape.nodes, experts));
    }
    d.nodes = expected_distinct_groups(experts, shape.topk, sizes_of(experts, reach));
    d.ranks =
        expected_distinct_groups(experts, shape.topk, sizes_of(experts, shape.ranks / shape.nodes * reach));
  }
  d.other_nodes = d.nodes * (nodes - 1) / nodes;
  d.other_ranks = d.ranks * (nodes - 1) / nodes;
  d.near_ranks = d.ranks * (ranks / nodes - 1) / ranks;
  return d;
}

namespace {

/// n over k for counts of groups and experts, as a logarithm; minus infinity where k > n.
double log_choose(double n, double k) {
  if (k < 0 || k > n) return -std::numeric_limits<double>::infinity();
  return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
}

/// Probability that one of `places` equal places holds an expert of a token.
double place_share(double places, double experts, double topk, double groups, double drawn) {
  const double size = experts / groups;
  const double pool = drawn * size;
  const auto hit = [&](double held) {
    return 1 - std::exp(log_choose(pool - held, topk) - log_choose(pool, topk));
  };
  if (places >= groups) return drawn / groups * hit(experts / places);
  const double own = groups / places;
  double share = 0;
  for (double j = 1; j <= std::min(own, drawn); ++j) {
    share += std::exp(log_choose(own, j) + log_choose(groups - own, drawn - j) - log_choose(groups, drawn)) *
             hit(j * size);
  }
  return share;
}

void check_places(std::int32_t ranks, std::int32_t nodes) {
  if (ranks >= 1 && nodes >= 1 && ranks % nodes == 0) return;
  throw Error(Errc::invalid_argument,
              fmt::format("{} ranks on {} nodes: the nodes must divide the ranks", ranks, nodes));
}

}  // namespace

Destinations group_limited_destinations(std::int32_t ranks, std::int32_t nodes, std::int64_t experts,
                                        std::int64_t topk, std::int64_t groups, std::int64_t top_groups) {
  check_places(ranks, nodes);
  if (groups < 1 || experts < 1 || experts % groups != 0) {
    throw Error(Errc::invalid_argument, fmt::format("{} groups do not divide {} experts", groups, experts));
  }
  if (top_groups < 1 || top_groups > groups || topk < 1 || topk > top_groups * (experts / groups)) {
    throw Error(Errc::invalid_argument,
                fmt::format("top-k {} of {} of {} groups with {} experts each: the groups must hold as many",
                            topk, top_groups, groups, experts / groups));
  }
  for (const std::int64_t places : {std::int64_t{ranks}, std::int64_t{nodes}}) {
    if (groups % places == 0 || places % groups == 0) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("{} groups of experts on {} places: one must be a multiple of the other", groups,
                            places));
  }
  const auto share = [&](std::int32_t places) {
    return place_share(places, static_cast<double>(experts), static_cast<double>(topk),
                       static_cast<double>(groups), static_cast<double>(top_groups));
  };
  const double r = ranks;
  const double n = nodes;
  Destinations d;
  d.ranks = r * share(ranks);
  d.nodes = n * share(nodes);
  d.other_nodes = d.nodes * (n - 1) / n;
  d.other_ranks = d.ranks * (n - 1) / n;
  d.near_ranks = d.ranks * (r / n - 1) / r;
  return d;
}

Destinations counted_destinations(std::span<const std::int32_t> ids, std::int64_t topk, std::int64_t experts,
                                  std::int32_t ranks, std::int32_t nodes, std::int32_t source_rank) {
  check_places(ranks, nodes);
  if (topk < 1 || experts < 1 || static_cast<std::int64_t>(ids.size()) % topk != 0) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{} ids with top-k {} of {} experts: expected whole tokens", ids.size(), topk, experts));
  }
  if (source_rank < 0 || source_rank >= ranks)
    throw Error(Errc::invalid_argument, fmt::format("source {} is none of {} ranks", source_rank, ranks));
  const ExpertPartition partition{static_cast<std::int32_t>(experts), ranks};
  const std::int32_t per_node = ranks / nodes;
  const std::int64_t tokens = static_cast<std::int64_t>(ids.size()) / topk;
  std::int64_t count[5] = {};
  std::vector<std::int64_t> rank_seen(static_cast<std::size_t>(ranks), -1);
  std::vector<std::int64_t> node_seen(static_cast<std::size_t>(nodes), -1);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t k = 0; k < topk; ++k) {
      const std::int32_t id = ids[static_cast<std::size_t>(t * topk + k)];
      if (id == -1) continue;
      if (id < 0 || id >= experts)
        throw Error(Errc::invalid_argument, fmt::format("token {}: expert {} of {}", t, id, experts));
      const std::int32_t rank = partition.owner(id);
      const std::int32_t node = rank / per_node;
      const bool far = node != source_rank / per_node;
      if (auto& seen = rank_seen[static_cast<std::size_t>(rank)]; seen != t) {
        seen = t;
        ++count[0];
        if (far) ++count[3];
        if (!far && rank != source_rank) ++count[4];
      }
      if (auto& seen = node_seen[static_cast<std::size_t>(node)]; seen != t) {
        seen = t;
        ++count[1];
        if (far) ++count[2];
      }
    }
  }
  if (tokens == 0) return {};
  const auto mean = [&](std::int64_t n) { return static_cast<double>(n) / static_cast<double>(tokens); };
  Destinations d;
  d.ranks = mean(count[0]);
  d.nodes = mean(count[1]);
  d.other_nodes = mean(count[2]);
  d.other_ranks = mean(count[3]);
  d.near_ranks = mean(count[4]);
  return d;
}

double row_bytes(const std::string& payload, std::int64_t hidden) {
  static const std::vector<std::string> names = {"bfloat16",     "half",  "float", "int8",  "fp8",
                                                 "fp8_block128", "mxfp8", "nvfp4", "mxfp4", "none"};
  const double h = static_cast<double>(hidden);
  if (payload == "bfloat16" || payload == "half") return 2 * h;
  if (payload == "float") return 4 * h;
  if (payload == "int8" || payload == "fp8") return h;
  if (payload == "fp8_block128") return h + 4 * std::ceil(h / 128);
  if (payload == "mxfp8") return h + std::ceil(h / 32);
  if (payload == "nvfp4") return h / 2 + h / 16;
  if (payload == "mxfp4") return h / 2 + h / 32;
  if (payload == "none") return 0;
  throw Error(Errc::invalid_argument,
              fmt::format("payload \"{}\" is not known; {}", payload, allowed_names(payload, names)));
}

double low_latency_dispatch_bytes(std::int64_t tokens, std::int64_t topk, std::int64_t hidden) {
  return static_cast<double>(tokens * topk) * row_bytes("fp8_block128", hidden);
}

double low_latency_combine_bytes(std::int64_t tokens, std::int64_t topk, std::int64_t hidden) {
  return static_cast<double>(tokens * topk) * row_bytes("bfloat16", hidden);
}

std::vector<double> power_law_loads(std::int64_t experts, double alpha) {
  if (experts < 1 || !(alpha >= 0) || alpha > 10) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{} experts with exponent {}: allowed are 1 or more and 0 to 10", experts, alpha));
  }
  const double e = static_cast<double>(experts);
  std::vector<double> loads(static_cast<std::size_t>(experts));
  double sum = 0;
  for (std::size_t i = 0; i < loads.size(); ++i) {
    const double u = (static_cast<double>(i) + 0.5) / e;
    const double a = 1 - alpha;
    loads[i] = std::abs(a) < 1e-9 ? std::pow(e, u) : std::pow((std::pow(e, a) - 1) * u + 1, 1 / a);
    sum += loads[i];
  }
  std::sort(loads.rbegin(), loads.rend());
  for (double& load : loads) load *= e / sum;
  return loads;
}

double rank_imbalance(std::span<const double> expert_loads, std::int32_t ranks) {
  if (expert_loads.empty() || ranks < 1)
    throw Error(Errc::invalid_argument, "an imbalance needs at least one expert and one rank");
  const ExpertPartition partition{static_cast<std::int32_t>(expert_loads.size()), ranks};
  double total = 0;
  double busiest = 0;
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    double load = 0;
    for (std::int32_t i = 0; i < partition.count(rank); ++i)
      load += expert_loads[static_cast<std::size_t>(partition.first(rank)) + static_cast<std::size_t>(i)];
    total += load;
    busiest = std::max(busiest, load);
  }
  if (!(total > 0)) throw Error(Errc::invalid_argument, "the loads of all experts are 0");
  return busiest * ranks / total;
}

}  // namespace shunt

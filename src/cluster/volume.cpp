#include <shunt/cluster/volume.h>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/cluster/nearest.h>
#include <shunt/core/error.h>
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
              fmt::format("payload \"{}\" is not known; did you mean \"{}\"? Allowed are {}", payload,
                          nearest_name(payload, names), fmt::join(names, ", ")));
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

#include "crossing.h"

#include <cmath>
#include <vector>

#include <shunt/layout/traffic.h>

namespace shunt::bench {
namespace {

/// Experts of each rank, or of each node, that lies on another node than `node`.
std::vector<std::int64_t> other_groups(const ExpertPartition& experts, std::span<const std::int32_t> node_of,
                                       std::int32_t node, CrossingPath path) {
  std::vector<std::int64_t> sizes(node_of.size());
  for (std::int32_t rank = 0; rank < experts.num_ranks; ++rank) {
    const std::int32_t its_node = node_of[static_cast<std::size_t>(rank)];
    if (its_node == node) continue;
    sizes[static_cast<std::size_t>(path == CrossingPath::ranks ? rank : its_node)] += experts.count(rank);
  }
  return sizes;
}

}  // namespace

Crossing expect_crossing(const Workload& workload, std::span<const std::int32_t> node_of, CrossingPath path,
                         bool presum) {
  const Point& point = workload.point();
  Crossing crossing;
  crossing.path = path;
  crossing.counted_row_bytes = crossing.counted_result_bytes = 0;
  const bool uniform = point.routing_label == "uniform";
  if (uniform) crossing.uniform_row_bytes = crossing.uniform_row_sigma = 0;
  if (node_of.empty()) return crossing;
  const std::int64_t payload = workload.row_bytes() + workload.scale_bytes();
  Traffic traffic;
  double rows = 0;
  double variance = 0;
  for (std::int32_t rank = 0; rank < point.ranks; ++rank) {
    const Routing& routing = workload.routing(workload.group_of(rank));
    const TokenShare share = workload.share(rank);
    const auto tokens = share.end - share.begin;
    count_traffic(traffic, routing.ids.data() + share.begin * point.top_k, tokens, point.top_k,
                  workload.partition(), rank, node_of);
    if (!uniform) continue;
    const std::vector<std::int64_t> sizes =
        other_groups(workload.partition(), node_of, node_of[static_cast<std::size_t>(rank)], path);
    rows += static_cast<double>(tokens) * expected_distinct_groups(point.num_experts, point.top_k, sizes);
    variance += static_cast<double>(tokens) * variance_distinct_groups(point.num_experts, point.top_k, sizes);
  }
  const std::int64_t crossing_rows = path == CrossingPath::ranks ? traffic.other_ranks : traffic.other_nodes;
  crossing.counted_row_bytes = payload * crossing_rows;
  const std::int64_t results = presum ? crossing_rows : traffic.other_selections;
  crossing.counted_result_bytes = point.dp_size == 1 ? results * workload.out_row_bytes() : -1;
  if (uniform) {
    crossing.uniform_row_bytes = rows * static_cast<double>(payload);
    crossing.uniform_row_sigma = std::sqrt(variance) * static_cast<double>(payload);
  }
  return crossing;
}

}  // namespace shunt::bench

#include <shunt/layout/traffic.h>

#include <algorithm>

namespace shunt {
namespace {

/// C(E - n, K) / C(E, K): the probability that none of n given experts is among K distinct ones. As a product,
/// which neither overflows nor cancels.
double share_missing(std::int64_t experts, std::int64_t top_k, std::int64_t n) {
  if (experts - n < top_k) return 0;
  double share = 1;
  for (std::int64_t i = 0; i < top_k; ++i)
    share *= static_cast<double>(experts - n - i) / static_cast<double>(experts - i);
  return share;
}

}  // namespace

void count_traffic(Traffic& traffic, const std::int32_t* ids, std::int64_t tokens, std::int32_t top_k,
                   const ExpertPartition& experts, std::int32_t source_rank,
                   std::span<const std::int32_t> node_of) {
  const auto node = [&](std::int32_t rank) {
    return node_of.empty() ? rank : node_of[static_cast<std::size_t>(rank)];
  };
  std::vector<std::int32_t> ranks;
  std::vector<std::int32_t> nodes;
  for (std::int64_t token = 0; token < tokens; ++token) {
    ranks.clear();
    nodes.clear();
    for (std::int32_t k = 0; k < top_k; ++k) {
      const std::int32_t expert = ids[token * top_k + k];
      if (expert < 0) continue;
      const std::int32_t owner = experts.owner(expert);
      const bool elsewhere = node(owner) != node(source_rank);
      ++traffic.selections;
      traffic.other_selections += elsewhere ? 1 : 0;
      if (std::find(ranks.begin(), ranks.end(), owner) == ranks.end()) {
        ranks.push_back(owner);
        ++traffic.token_ranks;
        traffic.other_ranks += elsewhere ? 1 : 0;
      }
      if (elsewhere && std::find(nodes.begin(), nodes.end(), node(owner)) == nodes.end()) {
        nodes.push_back(node(owner));
        ++traffic.other_nodes;
      }
    }
  }
}

double expected_distinct_groups(std::int64_t experts, std::int64_t top_k,
                                std::span<const std::int64_t> sizes) {
  double sum = 0;
  for (const std::int64_t n : sizes) sum += 1 - share_missing(experts, top_k, n);
  return sum;
}

double variance_distinct_groups(std::int64_t experts, std::int64_t top_k,
                                std::span<const std::int64_t> sizes) {
  // Of the indicators "group g is missed": Var = sum p_g (1 - p_g) + sum over g != h of (p_gh - p_g p_h).
  double sum = 0;
  for (std::size_t g = 0; g < sizes.size(); ++g)
    for (std::size_t h = 0; h < sizes.size(); ++h) {
      const double pg = share_missing(experts, top_k, sizes[g]);
      const double ph = share_missing(experts, top_k, sizes[h]);
      sum += (g == h ? pg : share_missing(experts, top_k, sizes[g] + sizes[h])) - pg * ph;
    }
  return sum;
}

}  // namespace shunt

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/layout/traffic.h>

namespace shunt {
namespace {

/// Small numbers from a seed; the layout module has no generator of its own.
class Draws {
 public:
  explicit Draws(std::uint64_t seed) : state_(seed) {}
  std::int64_t below(std::int64_t n) {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::int64_t>((state_ >> 33U) % static_cast<std::uint64_t>(n));
  }
  /// `k` distinct numbers of [0, n).
  std::vector<std::int32_t> distinct(std::int32_t n, std::int32_t k) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    for (std::int32_t i = 0; i < k; ++i)
      std::swap(all[static_cast<std::size_t>(i)], all[static_cast<std::size_t>(i + below(n - i))]);
    all.resize(static_cast<std::size_t>(k));
    return all;
  }

 private:
  std::uint64_t state_;
};

/// Every choice of k of n, one after the other.
void for_each_choice(std::int32_t n, std::int32_t k, const auto& visit) {
  std::vector<bool> taken(static_cast<std::size_t>(n), false);
  std::fill(taken.begin(), taken.begin() + k, true);
  do {
    std::vector<std::int32_t> ids;
    for (std::int32_t i = 0; i < n; ++i)
      if (taken[static_cast<std::size_t>(i)]) ids.push_back(i);
    visit(ids);
  } while (std::prev_permutation(taken.begin(), taken.end()));
}

TEST(TrafficTest, CountsByHand) {
  // Eight experts on four ranks of two nodes; rank 0 sends.
  const ExpertPartition experts{.num_experts = 8, .num_ranks = 4};
  const std::vector<std::int32_t> nodes{0, 0, 1, 1};
  const std::vector<std::int32_t> ids{
      0,  1,  2,  // own rank twice, own node
      4,  5,  6,  // rank 2 twice, rank 3: two ranks of one other node
      -1, 7,  3,  // rank 3, own node
      -1, -1, -1  // nothing
  };
  Traffic traffic;
  count_traffic(traffic, ids.data(), 4, 3, experts, 0, nodes);
  EXPECT_EQ(traffic.selections, 8);
  EXPECT_EQ(traffic.token_ranks, 6);
  EXPECT_EQ(traffic.other_selections, 4);
  EXPECT_EQ(traffic.other_ranks, 3);
  EXPECT_EQ(traffic.other_nodes, 2);
}

TEST(TrafficTest, AddsUpOverSourcesAndTakesEveryRankForANodeWithoutNodes) {
  const ExpertPartition experts{.num_experts = 6, .num_ranks = 3};
  const std::vector<std::int32_t> ids{0, 2, 4, 5};
  Traffic traffic;
  count_traffic(traffic, ids.data(), 2, 2, experts, 0, {});
  count_traffic(traffic, ids.data(), 2, 2, experts, 2, {});
  EXPECT_EQ(traffic.selections, 8);
  EXPECT_EQ(traffic.other_ranks, traffic.other_nodes);
  // From rank 0: rank 1, rank 2. From rank 2: ranks 0 and 1.
  EXPECT_EQ(traffic.other_ranks, 4);
  EXPECT_EQ(traffic.other_selections, 5);
}

TEST(TrafficTest, AgreesWithSetsOfPairs) {
  Draws draws(7);
  for (int round = 0; round < 200; ++round) {
    const auto ranks = static_cast<std::int32_t>(1 + draws.below(7));
    const auto num_experts = static_cast<std::int32_t>(1 + draws.below(12));
    const auto top_k = static_cast<std::int32_t>(1 + draws.below(num_experts));
    const std::int64_t tokens = draws.below(9);
    const ExpertPartition experts{.num_experts = num_experts, .num_ranks = ranks};
    std::vector<std::int32_t> nodes;
    for (std::int32_t rank = 0; rank < ranks; ++rank)
      nodes.push_back(static_cast<std::int32_t>(draws.below(3)));
    const auto source = static_cast<std::int32_t>(draws.below(ranks));
    std::vector<std::int32_t> ids;
    std::set<std::pair<std::int64_t, std::int32_t>> other_ranks;
    std::set<std::pair<std::int64_t, std::int32_t>> other_nodes;
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int32_t expert : draws.distinct(num_experts, top_k)) {
        if (draws.below(5) == 0) expert = -1;
        ids.push_back(expert);
        if (expert < 0) continue;
        const std::int32_t owner = experts.owner(expert);
        const std::int32_t node = nodes[static_cast<std::size_t>(owner)];
        if (node == nodes[static_cast<std::size_t>(source)]) continue;
        other_ranks.emplace(t, owner);
        other_nodes.emplace(t, node);
      }
    Traffic traffic;
    count_traffic(traffic, ids.data(), tokens, top_k, experts, source, nodes);
    EXPECT_EQ(traffic.other_ranks, static_cast<std::int64_t>(other_ranks.size())) << "round " << round;
    EXPECT_EQ(traffic.other_nodes, static_cast<std::int64_t>(other_nodes.size())) << "round " << round;
  }
}

TEST(DistinctGroupsTest, IsTheMeanAndVarianceOverAllChoices) {
  const std::vector<std::vector<std::int64_t>> partitions{{4, 4}, {3, 3, 2}, {2, 1}, {8}, {0, 5}, {1, 1, 1}};
  for (const std::vector<std::int64_t>& sizes : partitions)
    for (std::int32_t k = 1; k <= 8; ++k) {
      double count = 0;
      double sum = 0;
      double squares = 0;
      for_each_choice(8, k, [&](const std::vector<std::int32_t>& ids) {
        double groups = 0;
        std::int64_t first = 0;
        for (const std::int64_t size : sizes) {
          const auto inside = [&](std::int32_t id) { return id >= first && id < first + size; };
          groups += std::any_of(ids.begin(), ids.end(), inside) ? 1 : 0;
          first += size;
        }
        ++count;
        sum += groups;
        squares += groups * groups;
      });
      const double mean = sum / count;
      EXPECT_NEAR(expected_distinct_groups(8, k, sizes), mean, 1e-12) << "k " << k;
      EXPECT_NEAR(variance_distinct_groups(8, k, sizes), squares / count - mean * mean, 1e-12) << "k " << k;
    }
}

TEST(DistinctGroupsTest, HoldsForSampledTokensOfALargeModel) {
  // 256 experts on 8 ranks of 4 nodes, as R1 has; what rank 0's tokens cause on the other nodes.
  constexpr std::int64_t kTokens = 4000;
  const ExpertPartition experts{.num_experts = 256, .num_ranks = 8};
  const std::vector<std::int32_t> nodes{0, 0, 1, 1, 2, 2, 3, 3};
  Draws draws(11);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < kTokens; ++t)
    for (const std::int32_t id : draws.distinct(256, 8)) ids.push_back(id);
  Traffic traffic;
  count_traffic(traffic, ids.data(), kTokens, 8, experts, 0, nodes);
  const auto compare = [&](const std::vector<std::int64_t>& sizes, std::int64_t found) {
    const double mean = expected_distinct_groups(256, 8, sizes);
    const double sigma = std::sqrt(variance_distinct_groups(256, 8, sizes) / static_cast<double>(kTokens));
    EXPECT_GT(sigma, 0);
    EXPECT_LT(std::abs(static_cast<double>(found) / static_cast<double>(kTokens) - mean), 4 * sigma);
  };
  compare({32, 32, 32, 32, 32, 32}, traffic.other_ranks);
  compare({64, 64, 64}, traffic.other_nodes);
}

}  // namespace
}  // namespace shunt

#include <shunt/cluster/volume.h>

#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/layout/traffic.h>

namespace shunt {
namespace {

TEST(VolumeTest, GivesThePublishedExpectedNodes) {
  // Source: the closed form with exact integers, for E 256 K 8, E 128 K 4, E 128 K 8 and E 8 K 2.
  struct Row {
    std::int64_t experts, topk;
    std::int32_t nodes;
    double expected;
  };
  const std::vector<Row> rows = {{256, 8, 2, 1.9930},  {256, 8, 4, 3.6142},  {256, 8, 8, 5.2947},
                                 {256, 8, 16, 6.5233}, {256, 8, 32, 7.2668}, {256, 8, 64, 7.6758},
                                 {128, 4, 2, 1.8809},  {128, 4, 4, 2.7544},  {128, 4, 8, 3.3425},
                                 {128, 4, 16, 3.6797}, {128, 8, 2, 1.9938},  {128, 8, 4, 3.6290},
                                 {128, 8, 8, 5.3394},  {128, 8, 16, 6.5965}, {8, 2, 2, 1.5714},
                                 {8, 2, 4, 1.8571},    {8, 2, 8, 2.0}};
  for (const Row& row : rows) {
    const Destinations d = expected_destinations({row.nodes, row.nodes, row.experts, row.topk});
    EXPECT_NEAR(d.nodes, row.expected, 6e-5) << row.experts << " " << row.topk << " " << row.nodes;
    EXPECT_NEAR(d.ranks, row.expected, 6e-5);
    EXPECT_NEAR(d.other_nodes, row.expected * (row.nodes - 1) / row.nodes, 1e-4);
  }
}

TEST(VolumeTest, CountsTheBytesOfDeepEp) {
  // 128 tokens, top-8, 7168 elements: 98.3 GB/s in 77 us and 128.8 GB/s in 114 us.
  EXPECT_EQ(low_latency_dispatch_bytes(128, 8, 7168), 128 * 8 * (7168 + 56 * 4));
  EXPECT_EQ(low_latency_combine_bytes(128, 8, 7168), 128 * 8 * 7168 * 2);
  EXPECT_NEAR(low_latency_dispatch_bytes(128, 8, 7168) / 77e3, 98.3, 0.05);
  EXPECT_NEAR(low_latency_combine_bytes(128, 8, 7168) / 114e3, 128.8, 0.05);
  EXPECT_NEAR(low_latency_dispatch_bytes(128, 8, 7168) / 194e3, 39.0, 0.05);
  EXPECT_NEAR(low_latency_combine_bytes(128, 8, 7168) / 360e3, 40.8, 0.05);
}

TEST(VolumeTest, AgreesWithCountsOfDrawnIds) {
  // 32 ranks on 4 nodes; the mean over drawn tokens must lie within 4 standard errors of the closed form.
  constexpr std::int32_t kExperts = 64;
  constexpr std::int32_t kTopk = 6;
  constexpr std::int64_t kTokens = 20000;
  const ExpertPartition partition{kExperts, 32};
  std::vector<std::int32_t> node_of(32);
  for (std::int32_t rank = 0; rank < 32; ++rank) node_of[static_cast<std::size_t>(rank)] = rank / 8;
  for (const std::int32_t limit : {0, 2}) {
    std::vector<std::int32_t> ids;
    Random random(5, 1);
    for (std::int64_t token = 0; token < kTokens; ++token) {
      std::vector<std::int32_t> allowed;
      std::vector<std::int32_t> nodes = {0, 1, 2, 3};
      const int reach = limit == 0 ? 4 : limit;
      for (int i = 0; i < reach; ++i)
        std::swap(nodes[static_cast<std::size_t>(i)],
                  nodes[static_cast<std::size_t>(i) + random.below(static_cast<std::uint64_t>(4 - i))]);
      for (int i = 0; i < reach; ++i)
        for (std::int32_t e = 0; e < 16; ++e) allowed.push_back(nodes[static_cast<std::size_t>(i)] * 16 + e);
      for (std::int32_t k = 0; k < kTopk; ++k) {
        const std::size_t at =
            static_cast<std::size_t>(k) + random.below(allowed.size() - static_cast<std::size_t>(k));
        std::swap(allowed[static_cast<std::size_t>(k)], allowed[at]);
        ids.push_back(allowed[static_cast<std::size_t>(k)]);
      }
    }
    Traffic traffic;
    count_traffic(traffic, ids.data(), kTokens, kTopk, partition, 3, node_of);
    const Destinations d = expected_destinations({32, 4, kExperts, kTopk, limit});
    const double n = static_cast<double>(kTokens);
    EXPECT_NEAR(static_cast<double>(traffic.token_ranks) / n, d.ranks, 0.03) << limit;
    EXPECT_NEAR(static_cast<double>(traffic.other_ranks) / n, d.other_ranks, 0.06) << limit;
    EXPECT_NEAR(static_cast<double>(traffic.other_nodes) / n, d.other_nodes, 0.04) << limit;
  }
}

TEST(VolumeTest, LimitsTheNodesOfAToken) {
  // At most 4 of 8 nodes: the nodes of a token are those that hold one of its experts among 4 nodes' experts.
  const Destinations limited = expected_destinations({64, 8, 256, 8, 4});
  EXPECT_NEAR(limited.nodes, expected_destinations({4, 4, 128, 8}).nodes, 1e-12);
  EXPECT_LT(limited.nodes, 4);
  EXPECT_NEAR(limited.ranks, expected_destinations({32, 4, 128, 8}).ranks, 1e-12);
  EXPECT_EQ(expected_destinations({64, 8, 256, 8, 8}).nodes, expected_destinations({64, 8, 256, 8}).nodes);
}

TEST(VolumeTest, DealsExpertsInTurn) {
  const Destinations d = expected_destinations({4, 1, 256, 8, 0, true});
  EXPECT_EQ(d.ranks, 4);
  EXPECT_EQ(d.near_ranks, 3);
  EXPECT_EQ(expected_destinations({16, 1, 256, 8, 0, true}).near_ranks, 7.5);
}

TEST(VolumeTest, KnowsRowsOfEveryPayload) {
  EXPECT_EQ(row_bytes("bfloat16", 7168), 14336);
  EXPECT_EQ(row_bytes("fp8_block128", 7168), 7392);
  EXPECT_EQ(row_bytes("fp8_block128", 130), 138);
  EXPECT_EQ(row_bytes("nvfp4", 7168), 4032);
  EXPECT_EQ(row_bytes("none", 7168), 0);
  try {
    static_cast<void>(row_bytes("nvfp5", 7168));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("did you mean \"nvfp4\""), std::string::npos) << error.what();
  }
}

TEST(VolumeTest, RefusesImpossibleShapes) {
  EXPECT_THROW(static_cast<void>(expected_destinations({8, 3, 256, 8})), Error);
  EXPECT_THROW(static_cast<void>(expected_destinations({8, 1, 4, 8})), Error);
  EXPECT_THROW(static_cast<void>(expected_destinations({64, 8, 16, 8, 2})), Error);
  EXPECT_THROW(static_cast<void>(power_law_loads(0, 1)), Error);
}

TEST(VolumeTest, MeasuresImbalance) {
  EXPECT_EQ(rank_imbalance(std::vector<double>{1, 1, 1, 1}, 2), 1);
  EXPECT_EQ(rank_imbalance(std::vector<double>{4, 0, 0, 0}, 4), 4);
  EXPECT_DOUBLE_EQ(rank_imbalance(std::vector<double>{3, 1, 1, 1}, 2), 4.0 / 3);
  const std::vector<double> loads = power_law_loads(256, 1.01);
  double sum = 0;
  for (const double load : loads) sum += load;
  EXPECT_NEAR(sum, 256, 1e-9);
  EXPECT_GT(loads.front(), 5);
  EXPECT_GT(rank_imbalance(loads, 8), rank_imbalance(loads, 2));
}

TEST(VolumeTest, LimitsTokensToGroups) {
  // Without a limit it is the unlimited form, whatever the groups.
  for (const std::int32_t nodes : {1, 2, 4, 8, 16, 32}) {
    const Destinations all = expected_destinations({32, nodes, 256, 8, 0, false});
    const Destinations grouped = group_limited_destinations(32, nodes, 256, 8, 8, 8);
    EXPECT_NEAR(grouped.nodes, all.nodes, 1e-9);
    EXPECT_NEAR(grouped.ranks, all.ranks, 1e-9);
    EXPECT_NEAR(grouped.other_ranks, all.other_ranks, 1e-9);
  }
  // One group on each node: as a limit of nodes.
  const Destinations limited = group_limited_destinations(64, 8, 256, 8, 8, 4);
  EXPECT_NEAR(limited.nodes, expected_destinations({64, 8, 256, 8, 4, false}).nodes, 1e-9);
  EXPECT_NEAR(limited.ranks, expected_destinations({64, 8, 256, 8, 4, false}).ranks, 1e-9);
  EXPECT_LE(group_limited_destinations(64, 32, 256, 8, 8, 4).nodes, 8);
  EXPECT_THROW((void)group_limited_destinations(8, 8, 256, 8, 7, 4), Error);
  EXPECT_THROW((void)group_limited_destinations(8, 8, 256, 8, 8, 9), Error);
  EXPECT_THROW((void)group_limited_destinations(8, 8, 256, 64, 8, 1), Error);
  EXPECT_THROW((void)group_limited_destinations(12, 12, 240, 8, 8, 4), Error);
}

TEST(VolumeTest, DrawsFromGroupsReachWhatIsExpected) {
  // Two of four groups of eight experts, three experts of them, on four ranks of two nodes.
  constexpr std::int32_t kTokens = 20000;
  Random random(5, 1);
  const auto below = [&](std::int32_t n) {
    return std::min(n - 1, static_cast<std::int32_t>(random.uniform() * n));
  };
  std::vector<std::int32_t> ids;
  for (std::int32_t t = 0; t < kTokens; ++t) {
    const std::int32_t first = below(4);
    const std::int32_t second = (first + 1 + below(3)) % 4;
    std::vector<std::int32_t> pool;
    for (const std::int32_t group : {first, second})
      for (std::int32_t e = 0; e < 8; ++e) pool.push_back(group * 8 + e);
    for (std::size_t k = 0; k < 3; ++k) {
      const auto at = k + static_cast<std::size_t>(below(static_cast<std::int32_t>(pool.size() - k)));
      std::swap(pool[k], pool[at]);
      ids.push_back(pool[k]);
    }
  }
  const Destinations counted = counted_destinations(ids, 3, 32, 4, 2, 1);
  const Destinations expected = group_limited_destinations(4, 2, 32, 3, 4, 2);
  EXPECT_NEAR(counted.ranks, expected.ranks, 0.02);
  EXPECT_NEAR(counted.nodes, expected.nodes, 0.02);
  EXPECT_NEAR(counted.other_nodes, expected.other_nodes, 0.02);
  EXPECT_NEAR(counted.other_ranks, expected.other_ranks, 0.02);
  EXPECT_NEAR(counted.near_ranks, expected.near_ranks, 0.02);
}

TEST(VolumeTest, CountsRecordedIds) {
  // Ranks 0 and 1 on node 0; experts 0 and 1 on rank 0.
  const std::vector<std::int32_t> ids = {0, 1, 2, 6, -1, 3};
  const Destinations d = counted_destinations(ids, 2, 8, 4, 2, 0);
  EXPECT_DOUBLE_EQ(d.ranks, 4.0 / 3);
  EXPECT_DOUBLE_EQ(d.nodes, 4.0 / 3);
  EXPECT_DOUBLE_EQ(d.other_nodes, 1.0 / 3);
  EXPECT_DOUBLE_EQ(d.other_ranks, 1.0 / 3);
  EXPECT_DOUBLE_EQ(d.near_ranks, 2.0 / 3);
  EXPECT_EQ(counted_destinations({}, 2, 8, 4, 2, 0).ranks, 0);
  const std::vector<std::int32_t> bad = {8, 0};
  EXPECT_THROW((void)counted_destinations(bad, 2, 8, 4, 2, 0), Error);
  EXPECT_THROW((void)counted_destinations(ids, 4, 8, 4, 2, 0), Error);
  EXPECT_THROW((void)counted_destinations(ids, 2, 8, 4, 3, 0), Error);
  EXPECT_THROW((void)counted_destinations(ids, 2, 8, 4, 2, 4), Error);
}

}  // namespace
}  // namespace shunt

#include <cmath>

#include <gtest/gtest.h>

#include <shunt/routing/load.h>

#include "golden.h"

namespace shunt {
namespace {

using test::golden_logits;
using test::route;

constexpr double kDigits = 5e-7;
using Counts = std::vector<std::int64_t>;

TEST(LoadStatisticsTest, GoldenNumbers) {
  const Counts counts = {3, 5, 2, 2};
  const LoadStatistics load = describe_load(counts);
  EXPECT_NEAR(load.cv, .408248, kDigits);
  EXPECT_NEAR(load.max_over_mean, 1.666667, kDigits);
  EXPECT_NEAR(load.max_vio, .666667, kDigits);
  EXPECT_EQ(load.total, 12);
  EXPECT_EQ(load.min, 2);
  EXPECT_EQ(load.max, 5);
  EXPECT_EQ(load.idle, 0);
}

TEST(LoadStatisticsTest, GiniByPairs) {
  // The mean absolute difference of all pairs over twice the mean.
  const Counts counts = {3, 5, 2, 2, 0, 11};
  double sum = 0;
  for (const std::int64_t a : counts) {
    for (const std::int64_t b : counts) sum += std::abs(static_cast<double>(a - b));
  }
  const LoadStatistics load = describe_load(counts);
  EXPECT_NEAR(load.gini, sum / 36 / (2 * load.mean), 1e-12);
  EXPECT_EQ(load.idle, 1);
}

TEST(LoadStatisticsTest, EvenAndAllOnOne) {
  const LoadStatistics even = describe_load(Counts(8, 3));
  EXPECT_NEAR(even.gini, 0, 1e-15);
  EXPECT_NEAR(even.cv, 0, 1e-15);
  EXPECT_NEAR(even.entropy, std::log(8), 1e-12);
  EXPECT_NEAR(even.effective_experts, 8, 1e-9);
  Counts one(8, 0);
  one[2] = 5;
  const LoadStatistics all = describe_load(one);
  EXPECT_NEAR(all.gini, 1 - 1.0 / 8, 1e-12);
  EXPECT_NEAR(all.cv, std::sqrt(7), 1e-6);
  EXPECT_NEAR(all.entropy, 0, 1e-15);
  EXPECT_EQ(describe_load(Counts(4, 0)).cv, 0.0);
  EXPECT_EQ(describe_load({}).experts, 0);
}

TEST(GateStatisticsTest, GoldenNumbers) {
  const auto logits = golden_logits<double>();
  EXPECT_NEAR(describe_gate(route(make_gate("softk", 4, 2), logits)).entropy, .559499, kDigits);
  EXPECT_NEAR(mean_entropy<double>(logits.view()), .941814, kDigits);
  EXPECT_NEAR(mean_entropy<float>(golden_logits<float>().view()), .941814, 1e-6);
}

TEST(GateStatisticsTest, LeavesOutTokensWithoutChoices) {
  const GateOutput<float> gate{3, 4, 2, {0, 1, -1, -1, 2, -1}, {1.5F, .5F, 0, 0, 3, 0}};
  const GateStatistics all = describe_gate(gate);
  EXPECT_EQ(all.tokens, 2);
  EXPECT_NEAR(all.mean_topk_prob, (.75 + 1) / 2, 1e-12);
  EXPECT_NEAR(all.entropy, -(.75 * std::log(.75) + .25 * std::log(.25)) / 2, 1e-12);
  EXPECT_NEAR(all.experts_per_token, 1.0, 1e-12);
  EXPECT_EQ(expert_counts(to_routing(gate)), (Counts{1, 1, 1, 0}));
}

}  // namespace
}  // namespace shunt

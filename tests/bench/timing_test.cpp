#include <vector>

#include <gtest/gtest.h>

#include <shunt/bench/timing.h>

namespace shunt::bench {
namespace {

TEST(TimingTest, TakesLastEndLessFirstBegin) {
  std::vector<RankStamps> ranks(2);
  ranks[0].dispatch_begin = 1000;
  ranks[0].dispatch_end = 3000;
  ranks[1].dispatch_begin = 1500;
  ranks[1].dispatch_end = 6000;
  ranks[0].touch_begin = 7000;
  ranks[0].touch_end = 9000;
  ranks[1].touch_begin = 6500;
  ranks[1].touch_end = 7000;
  ranks[0].combine_begin = 10'000;
  ranks[0].combine_end = 10'250;
  ranks[1].combine_begin = 10'000;
  ranks[1].combine_end = 10'100;
  for (RankStamps& rank : ranks) rank.inner.fill(-1);
  ranks[1].inner[static_cast<std::size_t>(Inner::pack)] = 400;
  ranks[0].inner[static_cast<std::size_t>(Inner::pack)] = 900;
  const StepSample sample = makespan(ranks);
  EXPECT_DOUBLE_EQ(sample.dispatch_us, 5.0);
  EXPECT_DOUBLE_EQ(sample.touch_us, 2.5);
  EXPECT_DOUBLE_EQ(sample.combine_us, 0.25);
  EXPECT_DOUBLE_EQ(sample.total_us, 7.75);
  EXPECT_DOUBLE_EQ(sample.inner_us[static_cast<std::size_t>(Inner::pack)], 0.9);
  EXPECT_DOUBLE_EQ(sample.inner_us[static_cast<std::size_t>(Inner::reduce)], -1);
}

TEST(TimingTest, NeverSubtractsStampsOfClocksThatAreNotOne) {
  // Rank 1 lives on a machine that started a second later.
  std::vector<RankStamps> ranks(2);
  ranks[0].dispatch_begin = 2'000'001'000;
  ranks[0].dispatch_end = 2'000'003'000;
  ranks[1].dispatch_begin = 1'000'001'000;
  ranks[1].dispatch_end = 1'000'005'500;
  const StepSample sample = makespan(ranks, StampClock::per_rank);
  EXPECT_DOUBLE_EQ(sample.dispatch_us, 4.5);
  EXPECT_DOUBLE_EQ(sample.total_us, 4.5);
}

}  // namespace
}  // namespace shunt::bench

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>

#include <shunt/core/random.h>

namespace shunt {
namespace {

TEST(RandomTest, GivesTheKnownAnswerForCounterZeroAndKeyZero) {
  Random random(0);
  for (const std::uint32_t expected : {0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U})
    EXPECT_EQ(random.next_u32(), expected);
}

TEST(RandomTest, GivesTheSameValuesForSeedAndStreamEverywhere) {
  // From an independent implementation that also meets the known answers of the Philox paper.
  Random random(0x299f31d0a4093822, 0x0370734413198a2e);
  for (const std::uint32_t expected : {0xb60a410eU, 0x61bd7780U, 0xa53f3958U, 0x3d51eb3fU, 0x314ddb4bU,
                                       0x0ab83527U, 0x9fc3cabeU, 0x3fc8cf4cU})
    EXPECT_EQ(random.next_u32(), expected);
}

TEST(RandomTest, DerivesEveryKindOfNumberFromTheSameStream) {
  Random random(17, 3);
  EXPECT_EQ(random.next_u64(), 0xb7feef73384a8a61U);
  EXPECT_EQ(random.uniform(), 0.6415502299728744);
  EXPECT_EQ(random.uniform(), 0x1.66092ca20981cp-3);
  EXPECT_EQ(random.normal(), -0x1.062a83aaa1af4p+0);
  for (const std::uint64_t expected : {1U, 2U, 2U, 3U, 9U, 1U, 1U, 1U}) EXPECT_EQ(random.below(10), expected);
}

TEST(RandomTest, StaysBelowTheBoundAndReachesAllOfIt) {
  Random random(1);
  std::array<int, 7> seen = {};
  for (int i = 0; i < 7000; ++i) ++seen.at(random.below(7));
  for (const int count : seen) EXPECT_NEAR(count, 1000, 150);
  EXPECT_EQ(random.below(1), 0U);
  const std::uint64_t large = (std::uint64_t{1} << 63) + 1;  // half of all values are rejected
  for (int i = 0; i < 100; ++i) EXPECT_LT(random.below(large), large);
}

TEST(RandomTest, DrawsNormalsWithMeanZeroAndVarianceOne) {
  Random random(2);
  constexpr int kDraws = 100000;
  double sum = 0, squares = 0;
  for (int i = 0; i < kDraws; ++i) {
    const double x = random.normal();
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.02);
  EXPECT_NEAR(squares / kDraws, 1, 0.02);
}

TEST(PortableMathTest, MatchesTheLibraryToTwelveDigits) {
  for (double x = -1021; x < 1023; x += 0.37) ASSERT_NEAR(portable_exp2(x) / std::exp2(x), 1, 1e-13) << x;
  Random random(3);
  for (int i = 0; i < 100000; ++i) {
    const double x = std::ldexp(1 + random.uniform(), static_cast<int>(random.below(2098)) - 1074);
    const double expected = std::log2(x);
    ASSERT_NEAR(portable_log2(x), expected, 1e-13 * std::fabs(expected)) << x;
  }
  for (double step = 1e-15; step < 0.5; step *= 1.7) {
    ASSERT_NEAR(portable_log2(1 + step) / std::log2(1 + step), 1, 1e-13) << step;
    ASSERT_NEAR(portable_log2(1 - step) / std::log2(1 - step), 1, 1e-13) << step;
  }
}

TEST(PortableMathTest, IsExactAtPowersOfTwo) {
  for (int n = -1074; n <= 1023; ++n) {
    ASSERT_EQ(portable_exp2(n), std::ldexp(1.0, n));
    ASSERT_EQ(portable_log2(std::ldexp(1.0, n)), n);
  }
}

TEST(PortableMathTest, HandlesTheEndsOfTheRange) {
  EXPECT_EQ(portable_exp2(1024), std::numeric_limits<double>::infinity());
  EXPECT_EQ(portable_exp2(-1100), 0);
  EXPECT_EQ(portable_exp2(-std::numeric_limits<double>::infinity()), 0);
  EXPECT_TRUE(std::isnan(portable_exp2(std::numeric_limits<double>::quiet_NaN())));
}

}  // namespace
}  // namespace shunt

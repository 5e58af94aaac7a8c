#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/core/statistics.h>

namespace shunt {
namespace {

TEST(StatisticsTest, SummarisesByHandComputedNumbers) {
  const std::vector<double> samples = {9, 1, 4, 7, 2, 8, 3, 6, 5, 10.5, 0.5};
  const SampleSummary summary = summarize(samples);
  EXPECT_EQ(summary.count, 11);
  EXPECT_EQ(summary.min, 0.5);
  EXPECT_EQ(summary.max, 10.5);
  EXPECT_NEAR(summary.mean, 56.0 / 11, 1e-15);
  EXPECT_EQ(summary.median, 5);
  EXPECT_EQ(summary.p90, 9);               // rank 9 of 0 … 10
  EXPECT_NEAR(summary.p99, 10.35, 1e-12);  // rank 9.9: 9 + 0.9 · 1.5
  EXPECT_NEAR(summary.stddev * summary.stddev, (395.5 - 56.0 * 56.0 / 11) / 10, 1e-12);
  EXPECT_NEAR(summary.coefficient_of_variation, summary.stddev / summary.mean, 1e-15);
}

TEST(StatisticsTest, InterpolatesBetweenOrderStatistics) {
  const std::vector<double> sorted = {10, 20, 40, 80};
  EXPECT_EQ(percentile(sorted, 0), 10);
  EXPECT_EQ(percentile(sorted, 0.5), 30);
  EXPECT_NEAR(percentile(sorted, 0.9), 40 + 0.7 * 40, 1e-12);
  EXPECT_EQ(percentile(sorted, 1), 80);
}

TEST(StatisticsTest, TakesTheBinomialIntervalOfTheMedian) {
  // Exact ranks, from integer arithmetic over binomial coefficients; the last is far past 2^-n underflowing.
  struct Case {
    int n, low, high;
  };
  for (const Case& c : {Case{1, 1, 1}, Case{5, 1, 5}, Case{6, 1, 6}, Case{9, 2, 8}, Case{10, 2, 9},
                        Case{20, 6, 15}, Case{100, 40, 61}, Case{2000, 956, 1045}}) {
    std::vector<double> samples;
    for (int i = c.n; i >= 1; --i) samples.push_back(i);
    const SampleSummary summary = summarize(samples);
    EXPECT_EQ(summary.median_low, c.low) << c.n;
    EXPECT_EQ(summary.median_high, c.high) << c.n;
  }
}

TEST(StatisticsTest, IsAllZeroWithoutSamplesAndHasNoSpreadWithOne) {
  const SampleSummary none = summarize({});
  EXPECT_EQ(none.count, 0);
  EXPECT_EQ(none.median, 0);
  const std::vector<double> one = {3};
  const SampleSummary single = summarize(one);
  EXPECT_EQ(single.stddev, 0);
  EXPECT_EQ(single.p99, 3);
  const std::vector<double> opposite = {-1, 1};
  EXPECT_EQ(summarize(opposite).coefficient_of_variation, 0);
}

TEST(StatisticsTest, RejectsWhatIsNotFiniteAndNamesIt) {
  const std::vector<double> samples = {1, std::numeric_limits<double>::infinity()};
  try {
    static_cast<void>(summarize(samples));
    FAIL() << "infinity was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_STREQ(error.what(), "sample 1 of 2 is inf; samples must be finite");
  }
}

TEST(StatisticsTest, RejectsPercentilesOutsideTheUnitInterval) {
  const std::vector<double> sorted = {1, 2};
  EXPECT_THROW(static_cast<void>(percentile(sorted, 1.01)), Error);
  EXPECT_THROW(static_cast<void>(percentile(sorted, std::nan(""))), Error);
  EXPECT_THROW(static_cast<void>(percentile({}, 0.5)), Error);
}

}  // namespace
}  // namespace shunt

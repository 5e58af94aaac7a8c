#pragma once

#include <cstdint>
#include <span>

namespace shunt {

/// Summary of samples of one quantity. All fields share the unit of the samples.
struct SampleSummary {
  std::int64_t count = 0;
  double min = 0, max = 0, mean = 0;
  double median = 0;  ///< p50
  double p90 = 0, p99 = 0;
  double stddev = 0;                       ///< Of the sample (n - 1); 0 for fewer than two samples.
  double coefficient_of_variation = 0;     ///< stddev / mean; 0 where mean is 0.
  double median_low = 0, median_high = 0;  ///< 95 % confidence interval of the median.
};

/// Summarises `samples` (any order). No samples: all fields 0.
/// Result: percentiles interpolate linearly between order statistics at rank p (n - 1) (Hyndman and Fan type 7,
///         numpy's default). The interval of the median is the pair of order statistics l, u with
///         P(Binomial(n, 1/2) in [l, u - 1]) >= 0.95, chosen symmetric; with fewer than 6 samples it is [min, max].
/// Errors: Errc::invalid_argument on a sample that is not finite.
[[nodiscard]] SampleSummary summarize(std::span<const double> samples);

/// Percentile p in [0, 1] of ascending `sorted`, type 7 as above; sorted must not be empty.
[[nodiscard]] double percentile(std::span<const double> sorted, double p);

}  // namespace shunt

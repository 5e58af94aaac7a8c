#include <shunt/core/statistics.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt {
namespace {

/// Largest l (1-based) with P(Binomial(n, 1/2) <= l - 1) <= 0.025, at least 1: the lower order statistic of
/// the 95 % interval of the median; the upper one is n + 1 - l.
std::int64_t median_interval_rank(std::int64_t n) {
  // In logarithms, because 2^-n leaves the range of a double at n = 1075.
  double log_term = -static_cast<double>(n) * std::numbers::ln2;
  double tail = std::exp(log_term);
  std::int64_t rank = 1;
  for (std::int64_t k = 1; 2 * k < n; ++k) {
    log_term += std::log(static_cast<double>(n - k + 1) / static_cast<double>(k));
    tail += std::exp(log_term);
    if (tail > 0.025) break;
    rank = k + 1;
  }
  return rank;
}

}  // namespace

double percentile(std::span<const double> sorted, double p) {
  if (sorted.empty()) throw Error(Errc::invalid_argument, "percentile of no samples; at least one is needed");
  if (!(p >= 0 && p <= 1))
    throw Error(Errc::invalid_argument, fmt::format("percentile rank {} is outside [0, 1]", p));
  const double rank = p * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(rank);
  const auto above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (rank - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

SampleSummary summarize(std::span<const double> samples) {
  SampleSummary out;
  if (samples.empty()) return out;
  for (std::size_t i = 0; i < samples.size(); ++i)
    if (!std::isfinite(samples[i]))
      throw Error(Errc::invalid_argument, fmt::format("sample {} of {} is {}; samples must be finite", i,
                                                      samples.size(), samples[i]));
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());

  const double count = static_cast<double>(sorted.size());
  out.count = static_cast<std::int64_t>(sorted.size());
  out.min = sorted.front();
  out.max = sorted.back();
  double sum = 0;
  for (const double x : sorted) sum += x;
  out.mean = sum / count;
  if (sorted.size() > 1) {
    double squares = 0;
    for (const double x : sorted) squares += (x - out.mean) * (x - out.mean);
    out.stddev = std::sqrt(squares / (count - 1));
  }
  out.coefficient_of_variation = out.mean == 0 ? 0 : out.stddev / out.mean;
  out.median = percentile(sorted, 0.5);
  out.p90 = percentile(sorted, 0.9);
  out.p99 = percentile(sorted, 0.99);
  const std::int64_t rank = median_interval_rank(out.count);
  out.median_low = sorted[static_cast<std::size_t>(rank - 1)];
  out.median_high = sorted[static_cast<std::size_t>(out.count - rank)];
  return out;
}

}  // namespace shunt

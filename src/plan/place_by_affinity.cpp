#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/plan/affinity.h>

namespace shunt::plan {
namespace {

using Index = std::size_t;

constexpr std::int64_t kMostTokens = 4096;
constexpr int kMostPasses = 8;
constexpr double kNothing = 1e-9;  // Of a load, which is a count

/// Choices of some tokens, taken evenly from all ranks.
struct Sample {
  Index experts = 0;
  std::vector<std::vector<std::int32_t>> chosen;  ///< Of each token
  std::vector<Index> home;                        ///< Rank of each token
  std::vector<double> loads;                      ///< Selections of each expert
};

Sample sample(std::span<const Routing> tokens) {
  Sample s;
  std::int64_t all = 0;
  for (const Routing& routing : tokens) {
    s.experts = std::max(s.experts, static_cast<Index>(routing.num_experts));
    all += routing.num_tokens;
  }
  s.loads.resize(s.experts);
  const std::int64_t stride = std::max<std::int64_t>(1, (all + kMostTokens - 1) / kMostTokens);
  std::int64_t at = 0;
  for (Index rank = 0; rank < tokens.size(); ++rank) {
    const Routing& routing = tokens[rank];
    for (std::int64_t t = 0; t < routing.num_tokens; ++t, ++at) {
      std::vector<std::int32_t> chosen;
      for (std::int32_t k = 0; k < routing.top_k; ++k) {
        const std::int32_t e = routing.ids[static_cast<Index>(t * routing.top_k + k)];
        if (e < 0) continue;
        s.loads[static_cast<Index>(e)] += 1;
        chosen.push_back(e);
      }
      if (at % stride != 0 || chosen.empty()) continue;
      s.chosen.push_back(std::move(chosen));
      s.home.push_back(rank);
    }
  }
  return s;
}

/// Experts in equal bins, with what swapping two of them changes.
class Bins {
 public:
  /// `home[t]` is the bin of token t's rank.
  Bins(const Sample& sample, std::vector<Index> bin_of, Index bins, std::vector<Index> home, double limit)
      : sample_(sample),
        bin_of_(std::move(bin_of)),
        home_(std::move(home)),
        limit_(limit),
        bins_(bins),
        load_(bins) {
    tokens_of_.resize(sample.experts);
    count_.resize(sample.chosen.size() * bins);
    for (Index e = 0; e < sample.experts; ++e) load_[bin_of_[e]] += sample.loads[e];
    for (Index t = 0; t < sample.chosen.size(); ++t)
      for (const std::int32_t e : sample.chosen[t]) {
        tokens_of_[static_cast<Index>(e)].push_back(t);
        ++count_[t * bins + bin_of_[static_cast<Index>(e)]];
      }
  }

  /// Rows to other bins than the token's own.
  [[nodiscard]] std::int64_t rows() const {
    std::int64_t sum = 0;
    for (Index t = 0; t < sample_.chosen.size(); ++t)
      for (Index b = 0; b < bins_; ++b) sum += b != home_[t] && count_[t * bins_ + b] > 0 ? 1 : 0;
    return sum;
  }

  /// Swaps experts between bins of one cell while that makes loads above the limit less, or saves rows without adding to
  /// those.
  void improve(const std::vector<Index>& cell_of_bin) {
    std::vector<char> both(sample_.chosen.size());
    for (int pass = 0; pass < kMostPasses; ++pass) {
      bool changed = false;
      for (Index a = 0; a < sample_.experts; ++a) {
        for (const Index t : tokens_of_[a]) both[t] = 1;
        Index best = sample_.experts;
        double best_excess = 0;
        std::int64_t best_rows = 0;
        for (Index b = 0; b < sample_.experts; ++b) {
          if (bin_of_[a] == bin_of_[b] || cell_of_bin[bin_of_[a]] != cell_of_bin[bin_of_[b]]) continue;
          const double excess = excess_change(a, b);
          if (excess > kNothing) continue;
          const std::int64_t rows = rows_change(a, b, both);
          if (excess >= -kNothing && rows >= 0) continue;
          if (best == sample_.experts || excess < best_excess - kNothing ||
              (excess <= best_excess + kNothing && rows < best_rows)) {
            best = b;
            best_excess = excess;
            best_rows = rows;
          }
        }
        for (const Index t : tokens_of_[a]) both[t] = 0;
        if (best == sample_.experts) continue;
        swap(a, best);
        changed = true;
      }
      if (!changed) return;
    }
  }

  [[nodiscard]] const std::vector<Index>& bin_of() const noexcept { return bin_of_; }
  [[nodiscard]] double excess() const {
    double sum = 0;
    for (const double load : load_) sum += std::max(0.0, load - limit_);
    return sum;
  }

 private:
  [[nodiscard]] double excess_change(Index a, Index b) const {
    const double shift = sample_.loads[b] - sample_.loads[a];
    const double la = load_[bin_of_[a]];
    const double lb = load_[bin_of_[b]];
    const auto above = [this](double load) { return std::max(0.0, load - limit_); };
    return above(la + shift) + above(lb - shift) - above(la) - above(lb);
  }

  [[nodiscard]] std::int64_t moved(Index e, Index from, Index to, const std::vector<char>& both,
                                   bool skip) const {
    std::int64_t change = 0;
    for (const Index t : tokens_of_[e]) {
      if (skip && both[t] != 0) continue;
      const std::int32_t* count = &count_[t * bins_];
      if (count[from] == 1 && home_[t] != from) --change;
      if (count[to] == 0 && home_[t] != to) ++change;
    }
    return change;
  }

  /// Tokens with both experts keep their counts.
  [[nodiscard]] std::int64_t rows_change(Index a, Index b, const std::vector<char>& both) {
    const Index from = bin_of_[a];
    const Index to = bin_of_[b];
    // Marks of a's tokens tell which of b's have both; the others way round needs b's marks.
    shared_.clear();
    for (const Index t : tokens_of_[b])
      if (both[t] != 0) shared_.push_back(t);
    std::int64_t change = moved(b, to, from, both, true) + moved(a, from, to, both, false);
    for (const Index t : shared_) {
      const std::int32_t* count = &count_[t * bins_];
      if (count[from] == 1 && home_[t] != from) ++change;
    }
    return change;
  }

  void swap(Index a, Index b) {
    const Index from = bin_of_[a];
    const Index to = bin_of_[b];
    for (const Index t : tokens_of_[a]) {
      --count_[t * bins_ + from];
      ++count_[t * bins_ + to];
    }
    for (const Index t : tokens_of_[b]) {
      --count_[t * bins_ + to];
      ++count_[t * bins_ + from];
    }
    load_[from] += sample_.loads[b] - sample_.loads[a];
    load_[to] += sample_.loads[a] - sample_.loads[b];
    std::swap(bin_of_[a], bin_of_[b]);
  }

  const Sample& sample_;
  std::vector<Index> bin_of_;
  std::vector<Index> home_;
  double limit_;
  Index bins_;
  std::vector<double> load_;
  std::vector<std::vector<Index>> tokens_of_;
  std::vector<std::int32_t> count_;  ///< [token, bin] experts of the token there
  std::vector<Index> shared_;
};

/// How often two experts are chosen together.
std::vector<float> together(const Sample& s) {
  std::vector<float> matrix(s.experts * s.experts);
  for (const auto& chosen : s.chosen)
    for (const std::int32_t a : chosen)
      for (const std::int32_t b : chosen)
        if (a != b) matrix[static_cast<Index>(a) * s.experts + static_cast<Index>(b)] += 1;
  return matrix;
}

/// Fills bin after bin: the heaviest expert left, then whichever is chosen most often together with those in the bin (or by
/// tokens at home there) and leaves the load below the limit.
std::vector<Index> grow(const Sample& s, const std::vector<float>& pairs, Index bins,
                        const std::vector<Index>& home, double limit) {
  const Index room = s.experts / bins;
  std::vector<std::vector<double>> at_home(bins, std::vector<double>(s.experts));
  for (Index t = 0; t < s.chosen.size(); ++t)
    for (const std::int32_t e : s.chosen[t]) at_home[home[t]][static_cast<Index>(e)] += 1;
  std::vector<Index> bin_of(s.experts, bins);
  for (Index bin = 0; bin < bins; ++bin) {
    std::vector<double> pull = at_home[bin];
    double load = 0;
    for (Index place = 0; place < room; ++place) {
      Index best = s.experts;
      bool best_fits = false;
      for (Index e = 0; e < s.experts; ++e) {
        if (bin_of[e] != bins) continue;
        const bool fits = load + s.loads[e] <= limit;
        const bool better =
            best == s.experts || (fits && !best_fits) ||
            (fits == best_fits &&
             (fits ? pull[e] > pull[best] || (pull[e] == pull[best] && s.loads[e] > s.loads[best])
                   : s.loads[e] < s.loads[best]));
        if (!better) continue;
        best = e;
        best_fits = fits;
      }
      bin_of[best] = bin;
      load += s.loads[best];
      for (Index e = 0; e < s.experts; ++e) pull[e] += static_cast<double>(pairs[best * s.experts + e]);
    }
  }
  return bin_of;
}

std::vector<Index> bins_of(const Placement& placement, Index experts, Index ranks_of_bin) {
  std::vector<Index> bin_of(experts);
  for (Index rank = 0; rank + 1 < placement.offsets.size(); ++rank)
    for (std::int64_t i = placement.offsets[rank]; i < placement.offsets[rank + 1]; ++i)
      bin_of[static_cast<Index>(placement.experts[static_cast<Index>(i)])] = rank / ranks_of_bin;
  return bin_of;
}

double heaviest(const std::vector<double>& loads) {
  return *std::max_element(loads.begin(), loads.end());
}

struct Candidate {
  std::vector<Index> bin_of;
  double excess = 0;
  std::int64_t rows = 0;
};

/// The best of several starts after swaps.
std::vector<Index> best_bins(const Sample& s, const std::vector<std::vector<Index>>& starts, Index bins,
                             const std::vector<Index>& home, double limit, const std::vector<Index>& cells) {
  Candidate best;
  for (const std::vector<Index>& start : starts) {
    Bins state(s, start, bins, home, limit);
    state.improve(cells);
    Candidate one{state.bin_of(), state.excess(), state.rows()};
    if (best.bin_of.empty() || one.excess < best.excess - kNothing ||
        (one.excess < best.excess + kNothing && one.rows < best.rows))
      best = std::move(one);
  }
  return best.bin_of;
}

}  // namespace

Placement place_by_affinity(std::span<const Routing> tokens, std::int64_t ranks, std::int64_t domains,
                            double max_imbalance) {
  const Sample s = sample(tokens);
  if (!(max_imbalance >= 1 && std::isfinite(max_imbalance)))
    throw Error(Errc::invalid_argument,
                fmt::format("max imbalance {}: expected a number of at least 1", max_imbalance));
  if (ranks < 1 || domains < 1 || ranks % domains != 0)
    throw Error(Errc::invalid_argument,
                fmt::format("placement: {} domains do not divide {} ranks", domains, ranks));
  const auto experts = static_cast<std::int64_t>(s.experts);
  const Placement linear = place_linear(experts, ranks);
  std::vector<float> loads(s.loads.begin(), s.loads.end());
  const Placement balanced = place_balanced(loads, {experts, 1, 1, ranks});
  const double total = std::accumulate(s.loads.begin(), s.loads.end(), 0.0);
  const auto rank_count = static_cast<Index>(ranks);
  const auto domain_count = static_cast<Index>(domains);
  const Index domain_ranks = rank_count / domain_count;
  const double rank_limit =
      std::max(max_imbalance * total / static_cast<double>(ranks), heaviest(rank_loads(balanced, loads)));
  const std::vector<float> pairs = together(s);

  std::vector<Index> domain_of(s.experts);
  if (domains > 1) {
    std::vector<Index> home = s.home;
    for (Index& rank : home) rank /= domain_ranks;
    const double limit =
        std::max(max_imbalance * total / static_cast<double>(domains), total / static_cast<double>(domains));
    domain_of =
        best_bins(s,
                  {bins_of(linear, s.experts, domain_ranks), bins_of(balanced, s.experts, domain_ranks),
                   grow(s, pairs, domain_count, home, limit)},
                  domain_count, home, limit, std::vector<Index>(domain_count));
  }
  // Inside the domains: even loads first, then swaps that save rows.
  std::vector<Index> even(s.experts);
  std::vector<Index> cells(rank_count);
  for (Index rank = 0; rank < rank_count; ++rank) cells[rank] = rank / domain_ranks;
  for (Index domain = 0; domain < domain_count; ++domain) {
    std::vector<Index> members;
    std::vector<float> weights;
    for (Index e = 0; e < s.experts; ++e) {
      if (domain_of[e] != domain) continue;
      members.push_back(e);
      weights.push_back(loads[e]);
    }
    const auto size = static_cast<std::int64_t>(members.size());
    const Placement inside = place_balanced(weights, {size, 1, 1, static_cast<std::int64_t>(domain_ranks)});
    const std::vector<Index> rank_of = bins_of(inside, members.size(), 1);
    for (Index i = 0; i < members.size(); ++i) even[members[i]] = domain * domain_ranks + rank_of[i];
  }
  const std::vector<Index> rank_of = best_bins(s, {even}, rank_count, s.home, rank_limit, cells);
  Placement placement{{}, linear.offsets};
  for (Index rank = 0; rank < rank_count; ++rank)
    for (Index e = 0; e < s.experts; ++e)
      if (rank_of[e] == rank) placement.experts.push_back(static_cast<std::int32_t>(e));
  return placement;
}

}  // namespace shunt::plan

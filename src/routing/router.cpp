#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/routing/routing.h>
#include <shunt/routing/trace.h>

#include "streams.h"
#include "text.h"

namespace shunt {
namespace {

using detail::Purpose;

constexpr double kLog2E = 1.4426950408889634;

void check(const RoutingSpec& spec, const RoutingShape& shape) {
  const auto fail = [&spec](const std::string& why) {
    throw Error(Errc::invalid_argument, fmt::format("routing {}: {}", routing_name(spec), why));
  };
  constexpr std::int64_t kMaxTokens = std::int64_t{1} << detail::kTokenBits;
  if (shape.num_tokens < 0 || shape.num_tokens >= kMaxTokens) {
    fail(fmt::format("{} tokens per group; allowed are 0 to {}", shape.num_tokens, kMaxTokens - 1));
  }
  if (shape.num_groups < 1) fail(fmt::format("{} groups; at least 1 is needed", shape.num_groups));
  if (shape.num_experts < 1) fail(fmt::format("{} experts; at least 1 is needed", shape.num_experts));
  if (shape.top_k < 1 || shape.top_k > shape.num_experts) {
    fail(fmt::format("top-k {} is outside [1, {}], the number of experts", shape.top_k, shape.num_experts));
  }
  if (!(spec.mask_share >= 0.0 && spec.mask_share <= 1.0)) {
    fail(fmt::format("mask share {} is outside [0, 1]", spec.mask_share));
  }
  if (spec.kind == RoutingKind::power_law && !(std::isfinite(spec.alpha) && spec.alpha >= 0.0)) {
    fail(fmt::format("alpha {} is not a finite number >= 0", spec.alpha));
  }
  if (spec.kind == RoutingKind::grouped) {
    if (spec.groups < 1 || shape.num_experts % spec.groups != 0) {
      fail(fmt::format("{} expert groups do not divide {} experts", spec.groups, shape.num_experts));
    }
    if (spec.top_groups < 1 || spec.top_groups > spec.groups) {
      fail(fmt::format("top groups {} is outside [1, {}]", spec.top_groups, spec.groups));
    }
    const std::int64_t reachable = std::int64_t{spec.top_groups} * (shape.num_experts / spec.groups);
    if (reachable < shape.top_k) {
      fail(fmt::format("{} groups of {} experts hold {} experts, fewer than top-k {}", spec.top_groups,
                       shape.num_experts / spec.groups, reachable, shape.top_k));
    }
  }
}

/// Draws from 0 … n-1 without repeats, each remaining one equally likely: a Fisher-Yates shuffle that is
/// stopped after the first few and then undone, so that the cost is that of the draws and not of n.
class DistinctDraw {
 public:
  explicit DistinctDraw(std::int32_t n) : items_(static_cast<std::size_t>(n)) {
    std::iota(items_.begin(), items_.end(), 0);
  }

  void operator()(Random& random, std::span<std::int32_t> out) {
    swaps_.clear();
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::size_t j = i + static_cast<std::size_t>(random.below(items_.size() - i));
      std::swap(items_[i], items_[j]);
      swaps_.push_back(j);
      out[i] = items_[i];
    }
    for (std::size_t i = out.size(); i-- > 0;) std::swap(items_[i], items_[swaps_[i]]);
  }

 private:
  std::vector<std::int32_t> items_;
  std::vector<std::size_t> swaps_;
};

/// Experts of a power law: place p of the popularity order has weight (p + 1)^-alpha.
struct Popularity {
  std::vector<std::int32_t> order;  ///< Expert at each place
  std::vector<double> weight;       ///< By place, falling; the smallest may be 0

  Popularity() = default;
  Popularity(std::int32_t num_experts, double alpha, std::uint64_t seed) {
    order.resize(static_cast<std::size_t>(num_experts));
    DistinctDraw draw(num_experts);
    Random random(detail::purpose_seed(seed, Purpose::permutation));
    draw(random, order);
    for (std::size_t p = 0; p < order.size(); ++p) {
      const double exponent = -alpha * portable_log2(static_cast<double>(p + 1));
      // Below 2^-1000 a weight beside the 1 of place 0 is nothing; subnormals are kept out of the sums.
      weight.push_back(exponent < -1000.0 ? 0.0 : portable_exp2(exponent));
    }
  }
};

/// Successive sampling without replacement: each draw takes a remaining expert with probability proportional
/// to its weight. Weights are summed in blocks of about sqrt(E), so that a draw looks at 3 sqrt(E) numbers; a
/// block is summed anew when one of it is taken, since subtracting a large weight would leave its rounding
/// error in place of the small.
class WeightedDraw {
 public:
  explicit WeightedDraw(const Popularity& popularity)
      : popularity_(popularity), left_(popularity.weight), taken_(left_.size(), 0) {
    while (block_ * block_ < left_.size()) ++block_;
    block_sum_.resize((left_.size() + block_ - 1) / block_);
    for (std::size_t b = 0; b < block_sum_.size(); ++b) sum_block(b);
  }

  void operator()(Random& random, std::span<std::int32_t> out) {
    places_.clear();
    for (std::int32_t& expert : out) {
      const std::size_t place = draw_place(random.uniform());
      expert = popularity_.order[place];
      taken_[place] = 1;
      left_[place] = 0.0;
      sum_block(place / block_);
      places_.push_back(place);
    }
    for (const std::size_t place : places_) {
      taken_[place] = 0;
      left_[place] = popularity_.weight[place];
    }
    for (const std::size_t place : places_) sum_block(place / block_);
  }

 private:
  [[nodiscard]] std::size_t end_of(std::size_t block) const {
    return std::min((block + 1) * block_, left_.size());
  }

  void sum_block(std::size_t block) {
    double sum = 0.0;
    for (std::size_t p = block * block_; p < end_of(block); ++p) sum += left_[p];
    block_sum_[block] = sum;
  }

  [[nodiscard]] std::size_t draw_place(double u) const {
    double total = 0.0;
    for (const double sum : block_sum_) total += sum;
    if (total == 0.0) {
      // Only weights of 0 remain: the most popular one is taken, which is the limit of the law.
      return static_cast<std::size_t>(std::find(taken_.begin(), taken_.end(), 0) - taken_.begin());
    }
    double x = u * total;
    std::size_t last = 0;  // The last one that could be meant: rounding may carry x past the end of a sum.
    for (std::size_t b = 0; b < block_sum_.size(); ++b) {
      if (block_sum_[b] == 0.0) continue;
      last = b;
      if (x < block_sum_[b]) break;
      x -= block_sum_[b];
    }
    std::size_t place = 0;
    for (std::size_t p = last * block_; p < end_of(last); ++p) {
      if (left_[p] == 0.0) continue;
      place = p;
      if (x < left_[p]) break;
      x -= left_[p];
    }
    return place;
  }

  const Popularity& popularity_;
  std::size_t block_ = 1;
  std::vector<double> left_;  ///< Weights; 0 where taken
  std::vector<char> taken_;
  std::vector<double> block_sum_;
  std::vector<std::size_t> places_;
};

}  // namespace

struct Router::Impl {
  RoutingSpec spec;
  RoutingShape shape;
  std::uint64_t seed = 0;
  Popularity popularity;                   // power_law
  detail::Text text;                       // text
  std::unique_ptr<detail::TextGate> gate;  // text
  std::vector<Routing> trace;              // trace: by group of the trace, its steps end to end

  Impl(const RoutingSpec& spec_in, const RoutingShape& shape_in, std::uint64_t seed_in)
      : spec(spec_in), shape(shape_in), seed(seed_in) {
    check(spec, shape);
    if (spec.kind == RoutingKind::power_law) popularity = Popularity(shape.num_experts, spec.alpha, seed);
    if (spec.kind == RoutingKind::text) {
      text = detail::read_text(spec.file);
      gate = std::make_unique<detail::TextGate>(shape.num_experts, seed);
    }
    if (spec.kind == RoutingKind::trace) load_trace();
  }

  void load_trace();
  std::int64_t tokens_of(std::int32_t group) const;
  /// Fills ids of `routing` and `raw`, a positive weight per choice that is not yet normalised.
  void choose(std::int32_t group, Routing& routing, std::vector<double>& raw) const;
  template <class Draw>
  void choose_each(std::int32_t group, Routing& routing, Draw&& draw) const;
  void choose_from_text(std::int32_t group, Routing& routing, std::vector<double>& raw) const;
  void copy_from_trace(std::int32_t group, Routing& routing) const;
  void random_weights(std::int32_t group, const Routing& routing, std::vector<double>& raw) const;
  void mask(std::int32_t group, Routing& routing) const;
};

void Router::Impl::load_trace() {
  const Trace file = read_trace(spec.file);
  if (file.num_experts != shape.num_experts || file.top_k != shape.top_k) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{}: the trace has {} experts and top-k {}; asked for are {} experts and top-k {}",
                    spec.file, file.num_experts, file.top_k, shape.num_experts, shape.top_k));
  }
  trace.resize(file.steps.front().size());
  for (const auto& step : file.steps) {
    for (std::size_t g = 0; g < step.size(); ++g) {
      Routing& all = trace[g];
      all.num_tokens += step[g].num_tokens;
      all.ids.insert(all.ids.end(), step[g].ids.begin(), step[g].ids.end());
      all.weights.insert(all.weights.end(), step[g].weights.begin(), step[g].weights.end());
    }
  }
  if (shape.num_tokens == 0) return;
  for (std::size_t g = 0; g < trace.size() && g < static_cast<std::size_t>(shape.num_groups); ++g) {
    if (trace[g].num_tokens == 0) {
      throw Error(
          Errc::invalid_argument,
          fmt::format("{}: group {} has no tokens in any step, so that {} tokens per group cannot be taken "
                      "from it",
                      spec.file, g, shape.num_tokens));
    }
  }
}

std::int64_t Router::Impl::tokens_of(std::int32_t group) const {
  if (!spec.uneven) return shape.num_tokens;
  Random random(detail::purpose_seed(seed, Purpose::num_tokens), static_cast<std::uint64_t>(group));
  return static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(shape.num_tokens) + 1));
}

template <class Draw>
void Router::Impl::choose_each(std::int32_t group, Routing& routing, Draw&& draw) const {
  const std::uint64_t choice_seed = detail::purpose_seed(seed, Purpose::choice);
  const auto k = static_cast<std::size_t>(shape.top_k);
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    Random random(choice_seed, detail::token_stream(group, token));
    draw(random, std::span(routing.ids).subspan(static_cast<std::size_t>(token) * k, k));
  }
}

void Router::Impl::choose(std::int32_t group, Routing& routing, std::vector<double>& raw) const {
  switch (spec.kind) {
    case RoutingKind::uniform:
      choose_each(group, routing, DistinctDraw(shape.num_experts));
      break;
    case RoutingKind::power_law:
      choose_each(group, routing, WeightedDraw(popularity));
      break;
    case RoutingKind::one:
      choose_each(group, routing,
                  [](Random&, std::span<std::int32_t> out) { std::iota(out.begin(), out.end(), 0); });
      break;
    case RoutingKind::grouped: {
      const std::int32_t size = shape.num_experts / spec.groups;
      DistinctDraw draw_groups(spec.groups);
      DistinctDraw draw_members(spec.top_groups * size);
      std::vector<std::int32_t> chosen(static_cast<std::size_t>(spec.top_groups));
      choose_each(group, routing, [&](Random& random, std::span<std::int32_t> out) {
        draw_groups(random, chosen);
        draw_members(random, out);
        for (std::int32_t& id : out) id = chosen[static_cast<std::size_t>(id / size)] * size + id % size;
      });
      break;
    }
    case RoutingKind::trace:
      copy_from_trace(group, routing);
      return;
    case RoutingKind::text:
      choose_from_text(group, routing, raw);
      return;
  }
  random_weights(group, routing, raw);
}

void Router::Impl::random_weights(std::int32_t group, const Routing& routing,
                                  std::vector<double>& raw) const {
  const std::uint64_t weight_seed = detail::purpose_seed(seed, Purpose::weight);
  raw.reserve(routing.ids.size());
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    Random random(weight_seed, detail::token_stream(group, token));
    // Kept away from 0, so that a lost or swapped row shows in every checked sum.
    for (std::int32_t k = 0; k < shape.top_k; ++k) raw.push_back(0.25 + random.uniform());
  }
}

void Router::Impl::choose_from_text(std::int32_t group, Routing& routing, std::vector<double>& raw) const {
  const auto length = static_cast<std::int64_t>(text.tokens.size());
  const auto num_experts = static_cast<std::size_t>(shape.num_experts);
  const auto top_k = static_cast<std::size_t>(shape.top_k);
  const std::int64_t start = length * group / shape.num_groups;

  // Logits of each distinct word met, computed once: frequent words are most of a text.
  std::vector<float> table;
  std::unordered_map<std::int32_t, std::size_t> row_of_word;
  const auto row_at = [&](std::int64_t position) {
    const std::int32_t word = text.tokens[static_cast<std::size_t>(position % length)];
    const auto [it, is_new] = row_of_word.try_emplace(word, table.size());
    if (is_new) {
      table.resize(table.size() + num_experts);
      gate->word_logits(text.words[static_cast<std::size_t>(word)],
                        std::span(table).subspan(it->second, num_experts));
    }
    return it->second;
  };

  std::vector<float> logits(num_experts);
  raw.reserve(routing.ids.size());
  std::size_t previous = row_at(start + length - 1);
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const std::size_t current = row_at(start + token % length);
    for (std::size_t e = 0; e < num_experts; ++e) {
      logits[e] = table[current + e] + 0.5F * table[previous + e];
    }
    const auto ids = std::span(routing.ids).subspan(static_cast<std::size_t>(token) * top_k, top_k);
    detail::top_k(logits, ids);
    const double largest = logits[static_cast<std::size_t>(ids[0])];
    for (const std::int32_t id : ids) {
      raw.push_back(portable_exp2((logits[static_cast<std::size_t>(id)] - largest) * kLog2E));
    }
    previous = current;
  }
}

void Router::Impl::copy_from_trace(std::int32_t group, Routing& routing) const {
  const auto trace_groups = static_cast<std::int32_t>(trace.size());
  const Routing& source = trace[static_cast<std::size_t>(group % trace_groups)];
  const auto k = static_cast<std::size_t>(shape.top_k);
  const std::int64_t start = group / trace_groups * shape.num_tokens;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const auto from = static_cast<std::size_t>((start + token) % source.num_tokens) * k;
    const auto to = static_cast<std::size_t>(token) * k;
    std::copy_n(source.ids.data() + from, k, routing.ids.data() + to);
    std::copy_n(source.weights.data() + from, k, routing.weights.data() + to);
  }
}

void Router::Impl::mask(std::int32_t group, Routing& routing) const {
  if (spec.mask_share <= 0.0) return;
  const std::uint64_t mask_seed = detail::purpose_seed(seed, Purpose::mask);
  auto id = routing.ids.begin();
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    Random random(mask_seed, detail::token_stream(group, token));
    for (std::int32_t k = 0; k < shape.top_k; ++k, ++id) {
      if (random.uniform() < spec.mask_share) *id = -1;
    }
  }
}

namespace {

/// Weights of kept choices sum to 1 again, those of skipped ones are 0.
void normalise(std::span<const std::int32_t> ids, std::span<const double> raw, std::span<float> weights) {
  double sum = 0.0;
  for (std::size_t k = 0; k < ids.size(); ++k) {
    if (ids[k] >= 0) sum += raw[k];
  }
  for (std::size_t k = 0; k < ids.size(); ++k) {
    weights[k] = ids[k] >= 0 ? static_cast<float>(raw[k] / sum) : 0.0F;
  }
}

}  // namespace

Router::Router(const RoutingSpec& spec, const RoutingShape& shape, std::uint64_t seed)
    : impl_(std::make_unique<Impl>(spec, shape, seed)) {}
Router::~Router() = default;
Router::Router(Router&&) noexcept = default;
Router& Router::operator=(Router&&) noexcept = default;

Routing Router::route(std::int32_t group) const {
  const RoutingShape& shape = impl_->shape;
  if (group < 0 || group >= shape.num_groups) {
    throw Error(Errc::invalid_argument, fmt::format("routing {}: group {} is outside [0, {}]",
                                                    routing_name(impl_->spec), group, shape.num_groups - 1));
  }
  Routing routing;
  routing.num_tokens = impl_->tokens_of(group);
  routing.top_k = shape.top_k;
  routing.num_experts = shape.num_experts;
  const auto top_k = static_cast<std::size_t>(shape.top_k);
  routing.ids.resize(static_cast<std::size_t>(routing.num_tokens) * top_k);
  routing.weights.resize(routing.ids.size());

  std::vector<double> raw;
  impl_->choose(group, routing, raw);
  impl_->mask(group, routing);
  if (impl_->spec.kind == RoutingKind::trace) {
    // A recorded gate may scale its weights; they stay as they are, and the skipped ones are dropped.
    for (std::size_t i = 0; i < routing.ids.size(); ++i) {
      if (routing.ids[i] < 0) routing.weights[i] = 0.0F;
    }
    return routing;
  }
  for (std::size_t i = 0; i < routing.ids.size(); i += top_k) {
    normalise(std::span(routing.ids).subspan(i, top_k), std::span(raw).subspan(i, top_k),
              std::span(routing.weights).subspan(i, top_k));
  }
  return routing;
}

}  // namespace shunt

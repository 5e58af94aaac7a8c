#include <alltoall/sweep_case.h>

#include <algorithm>
#include <numeric>

#include <alltoall/formats.h>
#include <shunt/core/random.h>

namespace sweep {
namespace {

using shunt::DType;
using shunt::Random;

// Most elements a case may bring, so that thousands of cases fit a few minutes.
constexpr std::int64_t kMaxTokenElements = 150'000;
constexpr std::int64_t kMaxChoiceElements = 100'000;
constexpr std::int64_t kMaxRowElements = 600'000;

bool chance(Random& dice, double probability) {
  return dice.uniform() < probability;
}

std::int64_t between(Random& dice, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(dice.below(static_cast<std::uint64_t>(high - low + 1)));
}

template <class T>
T one_of(Random& dice, const std::vector<T>& choices) {
  return choices[dice.below(choices.size())];
}

std::int32_t pick_dp_size(Random& dice, std::int32_t ranks) {
  if (chance(dice, 0.45)) return 1;
  std::vector<std::int32_t> divisors;
  for (std::int32_t d = 1; d <= ranks; ++d)
    if (ranks % d == 0) divisors.push_back(d);
  return one_of(dice, divisors);
}

std::int32_t pick_experts(Random& dice, std::int32_t ranks) {
  switch (dice.below(6)) {
    case 0:
      return static_cast<std::int32_t>(between(dice, 1, ranks));  // some ranks own none
    case 1:
      return ranks * static_cast<std::int32_t>(between(dice, 1, 8));
    case 2:
      return static_cast<std::int32_t>(between(dice, 64, 256));
    default:
      return static_cast<std::int32_t>(between(dice, 1, 40));
  }
}

std::int32_t pick_top_k(Random& dice, std::int32_t experts, std::int32_t ranks) {
  switch (dice.below(5)) {
    case 0:
      return 1;
    case 1:
      return std::min(experts, 48);  // K = E where E is not large
    case 2:
      return std::min(experts, experts / ranks + 1 + static_cast<std::int32_t>(dice.below(3)));
    default:
      return static_cast<std::int32_t>(between(dice, 1, std::min(experts, 8)));
  }
}

std::int64_t pick_hidden(Random& dice) {
  switch (dice.below(8)) {
    case 0:
      return between(dice, 1, 3);
    case 1:
      return one_of<std::int64_t>(dice, {63, 64, 65, 127, 128, 129, 255, 256, 257});
    case 2:
      return 2 * between(dice, 2, 300) + 1;
    case 3:
      return between(dice, 300, 1024);
    case 4:
      return chance(dice, 0.3) ? between(dice, 1025, 7168) : 1024;
    default:
      return between(dice, 4, 200);
  }
}

std::int64_t pick_tokens(Random& dice) {
  switch (dice.below(10)) {
    case 0:
      return between(dice, 0, 1);
    case 1:
      return 64;
    case 2:
      return between(dice, 65, 400);
    default:
      return between(dice, 1, 63);
  }
}

void pick_dtypes(Random& dice, shunt::AllToAllConfig& config) {
  const std::vector<DType> wide = {DType::f32, DType::f16, DType::bf16};
  const std::vector<DType> narrow = {DType::f8e4m3, DType::f8e5m2};
  config.expert_dtype = one_of(dice, wide);
  config.out_dtype = one_of(dice, wide);
  config.scale_block = one_of<std::int64_t>(dice, {1, 2, 7, 32, 128, 128, 128, 10'000});
  if (chance(dice, 0.5)) config.scale_block = between(dice, 1, config.hidden + 3);
  switch (dice.below(3)) {
    case 0:  // as they are
      config.token_dtype = config.payload = one_of(dice, wide);
      return;
    case 1:  // already fp8
      config.token_dtype = config.payload = one_of(dice, narrow);
      config.scale = one_of<shunt::ScaleType>(
          dice, {shunt::ScaleType::none, shunt::ScaleType::f32, shunt::ScaleType::ue8m0});
      return;
    default:
      config.token_dtype = one_of(dice, wide);
      config.payload = one_of(dice, narrow);
      config.scale = one_of<shunt::ScaleType>(dice, {shunt::ScaleType::f32, shunt::ScaleType::ue8m0});
  }
}

shunt::AllToAllConfig pick_config(Random& dice, std::int32_t ranks) {
  shunt::AllToAllConfig config;
  config.dp_size = pick_dp_size(dice, ranks);
  config.num_experts = pick_experts(dice, ranks);
  config.top_k = pick_top_k(dice, config.num_experts, ranks);
  config.hidden = pick_hidden(dice);
  config.max_tokens = pick_tokens(dice);
  pick_dtypes(dice, config);
  config.layout = chance(dice, 0.35) ? shunt::RowLayout::padded : shunt::RowLayout::packed;
  config.alignment = chance(dice, 0.4) ? 1 : between(dice, 2, 16);
  config.delivery = config.payload == config.token_dtype && chance(dice, 0.4) ? shunt::Delivery::view
                                                                              : shunt::Delivery::rows;
  if (config.delivery == shunt::Delivery::rows)
    config.padding = one_of<shunt::PaddingRows>(
        dice, {shunt::PaddingRows::untouched, shunt::PaddingRows::zero, shunt::PaddingRows::poison});
  config.movement = one_of<shunt::Movement>(dice, {shunt::Movement::automatic, shunt::Movement::pull,
                                                   shunt::Movement::push, shunt::Movement::push_streaming});
  // Thresholds of the sizes that cases have, so that automatic pulls, pushes, streams and mixes these; else it measures.
  if (dice.below(4) != 0) {
    config.push_from_bytes = static_cast<std::int64_t>(dice.below(64 << 10));
    config.stream_from_bytes = static_cast<std::int64_t>(dice.below(128 << 10));
  }
  config.counts_by_group = chance(dice, 0.5);
  config.record_waits = chance(dice, 0.2);
  config.check_replicas = chance(dice, config.dp_size > 1 ? 0.5 : 0.2);
  config.path =
      one_of<shunt::Path>(dice, {shunt::Path::automatic, shunt::Path::flat, shunt::Path::hierarchical});
  config.check_messages = chance(dice, 0.3);
  config.deadline = std::chrono::milliseconds(120'000);  // sanitizers are slow
  const std::int64_t groups = ranks / config.dp_size;
  const std::int64_t local = (config.num_experts + ranks - 1) / ranks;
  const auto too_large = [&] {
    const std::int64_t elements = config.max_tokens * config.hidden;
    const std::int64_t blocks =
        config.layout == shunt::RowLayout::padded ? local : std::min<std::int64_t>(local, config.top_k);
    return groups * elements > kMaxTokenElements || elements * config.top_k > kMaxChoiceElements ||
           blocks * (groups * config.max_tokens + config.alignment) * config.hidden > kMaxRowElements;
  };
  while (config.max_tokens > 0 && too_large()) config.max_tokens /= 2;
  return config;
}

StepPlan pick_step(Random& dice, const shunt::AllToAllConfig& config, std::int64_t groups) {
  StepPlan step;
  step.stream = dice.next_u64();
  const bool even = chance(dice, 0.4);
  const bool nothing = chance(dice, 0.04);
  step.use_live_tokens = chance(dice, 0.25);
  for (std::int64_t g = 0; g < groups; ++g) {
    std::int64_t tokens = even ? config.max_tokens : between(dice, 0, config.max_tokens);
    if (nothing || (!even && chance(dice, 0.15))) tokens = 0;
    step.given.push_back(tokens);
    step.live.push_back(step.use_live_tokens ? between(dice, 0, tokens) : tokens);
  }
  switch (dice.below(5)) {
    case 0:
      step.mask_share = dice.uniform();
      break;
    case 1:
      step.mask_share = chance(dice, 0.3) ? 1.0 : 0.1;
      break;
    default:
      break;
  }
  step.popularity = one_of<Popularity>(dice, {Popularity::even, Popularity::even, Popularity::even,
                                              Popularity::skewed, Popularity::all_to_one});
  step.ids_64 = chance(dice, 0.5);
  step.tokens_in_place = config.payload == config.token_dtype && chance(dice, 0.5);
  step.scales_in_place = step.tokens_in_place && chance(dice, 0.8);
  step.outputs_in_place = chance(dice, 0.5);
  step.accumulate = chance(dice, 0.3);
  step.any_bits = config.payload == config.token_dtype && chance(dice, 0.15);
  step.strided = chance(dice, 0.3);
  return step;
}

/// Distinct experts of one token.
void pick_ids(Random& dice, const shunt::AllToAllConfig& config, const StepPlan& step,
              std::vector<std::int64_t>& deck, std::vector<std::int64_t>& ids) {
  const auto experts = static_cast<std::uint64_t>(config.num_experts);
  const auto k = static_cast<std::size_t>(config.top_k);
  if (step.popularity == Popularity::all_to_one) std::iota(deck.begin(), deck.end(), 0);
  for (std::size_t i = 0; i < k; ++i) {
    const std::uint64_t range = step.popularity == Popularity::all_to_one ? k - i : experts - i;
    std::uint64_t jump = dice.below(range);
    if (step.popularity == Popularity::skewed) jump = std::min(jump, dice.below(range));
    std::swap(deck[i], deck[i + jump]);
    ids.push_back(chance(dice, step.mask_share) ? -1 : deck[i]);
  }
}

oracle::GroupInput make_routing(const ObjectPlan& object, const StepPlan& step, std::int64_t group) {
  Random dice(object.seed ^ step.stream, static_cast<std::uint64_t>(group) * 2);
  oracle::GroupInput input;
  input.num_tokens = step.live[static_cast<std::size_t>(group)];
  std::vector<std::int64_t> deck(static_cast<std::size_t>(object.config.num_experts));
  std::iota(deck.begin(), deck.end(), 0);
  for (std::int64_t t = 0; t < input.num_tokens; ++t) pick_ids(dice, object.config, step, deck, input.ids);
  return input;
}

std::int64_t most_arriving(const ObjectPlan& object, const StepPlan& step) {
  oracle::Step all{object.config, object.num_ranks, {}};
  for (std::size_t g = 0; g < step.live.size(); ++g)
    all.groups.push_back(make_routing(object, step, static_cast<std::int64_t>(g)));
  const auto rows = oracle::Reference(std::move(all)).arrivals();
  return *std::max_element(rows.begin(), rows.end());
}

/// A step like `model` that brings at most `bound` rows to any rank.
StepPlan fitting_step(Random& dice, const ObjectPlan& object, const StepPlan& model, std::int64_t bound) {
  StepPlan step = model;
  step.stream = dice.next_u64();
  step.outcome = Outcome::normal;
  while (most_arriving(object, step) > bound) {
    for (auto& tokens : step.live) tokens /= 2;
    step.given = step.live;
    step.use_live_tokens = false;
  }
  return step;
}

/// Bounds the rows of a rank, in half of the cases too tightly for some steps.
void bound_rows(Random& dice, ObjectPlan& object) {
  std::vector<std::int64_t> needed;
  for (const auto& step : object.steps) needed.push_back(most_arriving(object, step));
  const std::int64_t most = *std::max_element(needed.begin(), needed.end());
  if (most == 0 || chance(dice, 0.5)) {
    object.config.max_recv_rows = most + between(dice, 0, 3);
    return;
  }
  object.config.max_recv_rows = between(dice, most / 2, most - 1);
  for (std::size_t i = 0; i < needed.size(); ++i)
    if (needed[i] > object.config.max_recv_rows) object.steps[i].outcome = Outcome::overflow;
  // A void step must be followed by one that works.
  if (object.steps.back().outcome == Outcome::overflow)
    object.steps.push_back(fitting_step(dice, object, object.steps.back(), object.config.max_recv_rows));
}

void let_replicas_differ(Random& dice, ObjectPlan& object) {
  StepPlan step = one_of(dice, object.steps);
  const auto group = static_cast<std::int32_t>(dice.below(step.live.size()));
  if (step.live[static_cast<std::size_t>(group)] == 0) return;
  step.outcome = Outcome::replicas_differ;
  step.odd_rank =
      group * object.config.dp_size + static_cast<std::int32_t>(between(dice, 0, object.config.dp_size - 1));
  step.odd_ids = chance(dice, 0.5);
  object.steps.insert(object.steps.begin(), step);
}

ObjectPlan pick_object(Random& dice, std::int32_t ranks) {
  ObjectPlan object;
  object.seed = dice.next_u64();
  object.num_ranks = ranks;
  object.config = pick_config(dice, ranks);
  const std::int64_t num_steps = between(dice, 1, 3);
  for (std::int64_t i = 0; i < num_steps; ++i)
    object.steps.push_back(pick_step(dice, object.config, ranks / object.config.dp_size));
  if (object.config.layout == shunt::RowLayout::packed && chance(dice, 0.3))
    bound_rows(dice, object);
  else if (object.config.check_replicas && object.config.dp_size > 1 && chance(dice, 0.4))
    let_replicas_differ(dice, object);
  return object;
}

/// A number of the format, most of them near 1, some rows of any size, with any_bits anything.
void pick_elements(Random& dice, DType dtype, std::int64_t count, bool any_bits, std::byte* to) {
  const oracle::Format format = oracle::format_of(dtype);
  const std::int64_t width = oracle::bytes_of(dtype);
  const std::uint32_t top = (1U << format.exponent_bits) - 1;
  const bool wild = chance(dice, 0.1);
  const bool zero = chance(dice, 0.02);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t bits = dice.next_u32();
    std::uint32_t exponent = bits >> 1 & top;
    if (!any_bits && !wild) exponent = static_cast<std::uint32_t>(format.bias) - 4 + (exponent & 7);
    if (!any_bits && exponent >= top) exponent = top - 1;
    std::uint32_t pattern = zero ? 0 : exponent << format.fraction_bits | bits >> (32 - format.fraction_bits);
    pattern |= (bits & 1) << (format.fraction_bits + format.exponent_bits);
    for (std::int64_t b = 0; b < width; ++b, pattern >>= 8)
      to[i * width + b] = static_cast<std::byte>(pattern & 0xff);
  }
}

float pick_weight(Random& dice) {
  const std::uint64_t kind = dice.below(32);
  if (kind == 0) return 0.0F;
  if (kind == 1) return static_cast<float>(dice.uniform()) * 1e-39F;  // subnormal
  return static_cast<float>(2.0 * dice.uniform() - 1.0);
}

}  // namespace

std::int32_t ranks_of(std::uint64_t seed) {
  return static_cast<std::int32_t>(seed % 8) + 1;
}

SweepCase make_case(std::uint64_t seed) {
  Random dice(seed, 1);
  SweepCase made;
  made.seed = seed;
  made.num_ranks = ranks_of(seed);
  made.delayed = seed / 8 % 8 == 0;
  made.objects.push_back(pick_object(dice, made.num_ranks));
  if (chance(dice, 0.2)) made.objects.push_back(pick_object(dice, made.num_ranks));
  made.nodes = static_cast<std::int32_t>(between(dice, 1, made.num_ranks));
  made.alone = made.num_ranks > 1 && chance(dice, 0.2);
  return made;
}

oracle::Step make_step(const ObjectPlan& object, const StepPlan& step) {
  const auto& config = object.config;
  oracle::Step made{config, object.num_ranks, {}};
  for (std::size_t g = 0; g < step.live.size(); ++g) {
    auto input = make_routing(object, step, static_cast<std::int64_t>(g));
    Random dice(object.seed ^ step.stream, g * 2 + 1);
    const std::int64_t row_bytes = config.hidden * oracle::bytes_of(config.token_dtype);
    input.tokens.resize(static_cast<std::size_t>(input.num_tokens * row_bytes));
    for (std::int64_t t = 0; t < input.num_tokens; ++t)
      pick_elements(dice, config.token_dtype, config.hidden, step.any_bits,
                    input.tokens.data() + t * row_bytes);
    if (config.payload == config.token_dtype && config.scale != shunt::ScaleType::none) {
      const std::int64_t count = input.num_tokens * ((config.hidden - 1) / config.scale_block + 1);
      input.scales.resize(static_cast<std::size_t>(count * oracle::bytes_of(config.scale)));
      if (config.scale == shunt::ScaleType::f32)
        pick_elements(dice, DType::f32, count, step.any_bits, input.scales.data());
      else
        for (auto& scale : input.scales) scale = static_cast<std::byte>(between(dice, 120, 134));
    }
    for (std::size_t i = 0; i < input.ids.size(); ++i) input.weights.push_back(pick_weight(dice));
    made.groups.push_back(std::move(input));
  }
  return made;
}

}  // namespace sweep

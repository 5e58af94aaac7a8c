#include <limits>
#include <numeric>

#include <gtest/gtest.h>

#include <shunt/routing/capacity.h>

#include "expect_error.h"
#include "golden.h"

namespace shunt {
namespace {

using test::expect_error;
using test::golden_logits;
using test::random_logits;
using test::route;

using Selections = std::vector<std::pair<std::int64_t, std::int32_t>>;

template <class Real>
Selections dropped(const GateOutput<Real>& gate, const CapacityPlan& plan) {
  Selections all;
  for (std::size_t i = 0; i < plan.places.size(); ++i) {
    if (gate.ids[i] >= 0 && plan.places[i] < 0)
      all.emplace_back(static_cast<std::int64_t>(i) / gate.top_k, static_cast<std::int32_t>(i) % gate.top_k);
  }
  return all;
}

std::int64_t capacity_of(CapacityFormula formula, double factor, std::int64_t tokens = 6, std::int32_t k = 2,
                         std::int32_t experts = 4, std::int64_t max_load = -1) {
  return expert_capacity({.formula = formula, .factor = factor}, tokens, k, experts, max_load);
}

TEST(ExpertCapacityTest, GoldenNumbers) {
  const std::vector<double> factors = {.75, 1, 1.25};
  const std::vector<std::int64_t> megatron = {3, 3, 4}, megablocks = {2, 3, 3}, tutel = {2, 4, 4};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(capacity_of(CapacityFormula::ceil, factors[i]), megatron[i]);
    EXPECT_EQ(capacity_of(CapacityFormula::megatron, factors[i]), megatron[i]);
    EXPECT_EQ(capacity_of(CapacityFormula::megablocks, factors[i]), megablocks[i]);
    EXPECT_EQ(capacity_of(CapacityFormula::tutel, factors[i]), tutel[i]);
    EXPECT_EQ(capacity_of(CapacityFormula::compat_sweep, factors[i]), megatron[i]);
  }
}

TEST(ExpertCapacityTest, ZeroAndNegativeFactorsMeanTheLoad) {
  EXPECT_EQ(capacity_of(CapacityFormula::megablocks, 0, 6, 2, 4, 5), 5);
  EXPECT_EQ(capacity_of(CapacityFormula::megablocks, 0.1, 6, 2, 4, 5), 5);  // floor(0.3) is 0
  EXPECT_EQ(capacity_of(CapacityFormula::tutel, 0, 6, 2, 4, 5), 5);
  EXPECT_EQ(capacity_of(CapacityFormula::tutel, -1, 6, 2, 4, 5), 4);
  EXPECT_EQ(capacity_of(CapacityFormula::tutel, -1, 6, 2, 4, 3), 3);
  EXPECT_EQ(capacity_of(CapacityFormula::ceil, 0.01), 1);
  EXPECT_EQ(expert_capacity({.formula = CapacityFormula::megablocks, .ranks = 4}, 6, 2, 4), 12);
  EXPECT_EQ(expert_capacity({.factor = 1, .alignment = 8}, 6, 2, 4), 8);
  EXPECT_EQ(expert_capacity({.factor = 1, .min_capacity = 4}, 6, 2, 4), 4);
}

TEST(ExpertCapacityTest, OldSweepRoundsSmallPartsAway) {
  // 1.00005 tokens each: the layer gives 2 places, the sweep 1.
  EXPECT_EQ(capacity_of(CapacityFormula::compat_sweep, 1.00005, 4, 1, 4), 1);
  EXPECT_EQ(capacity_of(CapacityFormula::ceil, 1.00005, 4, 1, 4), 2);
}

TEST(ExpertCapacityTest, OldBenchmarkMultipliesInFloat32) {
  EXPECT_EQ(capacity_of(CapacityFormula::compat_bench, 1.1, 50, 1, 1), 55);
  EXPECT_EQ(capacity_of(CapacityFormula::ceil, 1.1, 50, 1, 1), 56);  // 1.1 * 50 is 55.00000000000001
  EXPECT_EQ(capacity_of(CapacityFormula::compat_sweep, 0.00001, 4, 1, 4), 1);
}

TEST(ExpertCapacityTest, NamesWhatIsWrong) {
  const auto refused = [](const std::string& message, const std::function<void()>& body) {
    expect_error(Errc::invalid_argument, message, body);
  };
  refused("capacity (ceil): factor 0 is not a finite number > 0",
          [] { (void)capacity_of(CapacityFormula::ceil, 0); });
  refused("capacity (megatron): factor -1 is not a finite number > 0",
          [] { (void)capacity_of(CapacityFormula::megatron, -1); });
  refused("capacity (megablocks): factor -1 is not a finite number >= 0",
          [] { (void)capacity_of(CapacityFormula::megablocks, -1); });
  refused("capacity (tutel): factor nan is not a finite number",
          [] { (void)capacity_of(CapacityFormula::tutel, std::numeric_limits<double>::quiet_NaN()); });
  refused("capacity (tutel): factor 0 asks for the largest load of an expert, which was not given",
          [] { (void)capacity_of(CapacityFormula::tutel, 0); });
  refused(
      "capacity (tutel): factor 0.1 leaves 0 tokens per expert (6 tokens, top-k 2, 4 experts); at least 1 is "
      "needed",
      [] { (void)capacity_of(CapacityFormula::tutel, 0.1); });
  refused("capacity (ceil): top-k 5 is outside [1, 4], the number of experts",
          [] { (void)capacity_of(CapacityFormula::ceil, 1, 6, 5); });
  refused(
      "capacity (ceil): 3000000000 tokens per expert (factor 1000000000, 6 tokens, top-k 2, 4 experts, "
      "minimum 0, "
      "alignment 1); at most 2147483647 are allowed",
      [] { (void)capacity_of(CapacityFormula::ceil, 1e9); });
  const std::string most = "; at most 2147483647 are allowed";
  refused(
      "capacity (ceil): 1099511627776 tokens per expert (factor 1, 6 tokens, top-k 2, 4 experts, minimum "
      "1099511627776, alignment 1)" +
          most,
      [] { (void)expert_capacity({.min_capacity = std::int64_t{1} << 40}, 6, 2, 4); });
  refused(
      "capacity (ceil): 9223372036854775807 tokens per expert (factor 1, 6 tokens, top-k 2, 4 experts, "
      "minimum 0, "
      "alignment 9223372036854775807)" +
          most,
      [] { (void)expert_capacity({.alignment = std::numeric_limits<std::int64_t>::max()}, 6, 2, 4); });
  refused(
      "capacity formula \"megatrom\" is not known; did you mean \"megatron\"? Allowed are ceil, megatron, "
      "megablocks, tutel, compat-sweep, compat-bench",
      [] { (void)parse_capacity_formula("megatrom"); });
  refused(
      "drop order \"kmajor\" is not known; did you mean \"k-major\"? Allowed are token-major, k-major, "
      "batch-prioritised, probability",
      [] { (void)parse_drop_order("kmajor"); });
  EXPECT_EQ(parse_drop_order("batch_prioritised"), DropOrder::batch_prioritised);
}

TEST(CapacityPlanTest, GoldenDrops) {
  const auto logits = golden_logits<float>();
  const auto gate = route(make_gate("softk", 4, 2), logits);
  const auto plan = [&](DropOrder order, std::span<const float> priorities = {}) {
    return plan_capacity<float>(gate, {.order = order, .capacity = 3}, priorities);
  };
  EXPECT_EQ(dropped(gate, plan(DropOrder::token_major)), (Selections{{3, 0}, {4, 0}}));
  EXPECT_EQ(dropped(gate, plan(DropOrder::k_major)), (Selections{{3, 0}, {4, 0}}));
  EXPECT_EQ(dropped(gate, plan(DropOrder::batch_prioritised, largest_probability(logits.view()))),
            (Selections{{2, 0}, {3, 0}}));
  EXPECT_EQ(dropped(gate, plan(DropOrder::probability)), (Selections{{2, 0}, {4, 0}}));
}

TEST(CapacityPlanTest, TokenMajorAndKMajorDiffer) {
  const GateOutput<double> gate{2, 2, 2, {0, 1, 1, 0}, {.6, .4, .6, .4}};
  const auto token = plan_capacity<double>(gate, {.order = DropOrder::token_major, .capacity = 1});
  EXPECT_EQ(dropped(gate, token), (Selections{{1, 0}, {1, 1}}));
  EXPECT_EQ(token.tokens_without, 1);
  EXPECT_EQ(token.token_drop_rate(), 0.5);
  const auto slot = plan_capacity<double>(gate, {.order = DropOrder::k_major, .capacity = 1});
  EXPECT_EQ(dropped(gate, slot), (Selections{{0, 1}, {1, 1}}));
  EXPECT_EQ(slot.tokens_without, 0);
  EXPECT_EQ(slot.drop_rate(), 0.5);
}

TEST(CapacityPlanTest, PlacesStandInTokenOrderWhateverTheOrder) {
  const auto logits = random_logits(40, 5, 31);
  const auto gate = route(make_gate("softk", 5, 2), logits);
  for (const DropOrder order :
       {DropOrder::token_major, DropOrder::k_major, DropOrder::batch_prioritised, DropOrder::probability}) {
    const auto plan = plan_capacity<double>(gate, {.order = order, .capacity = 9});
    std::vector<std::int32_t> next(5, 0);
    for (std::size_t i = 0; i < gate.ids.size(); ++i) {
      if (plan.places[i] < 0) continue;
      EXPECT_EQ(plan.places[i], next[static_cast<std::size_t>(gate.ids[i])]++);
    }
    std::int64_t kept = 0;
    for (std::size_t e = 0; e < 5; ++e) {
      EXPECT_EQ(plan.kept[e], std::min<std::int64_t>(plan.counts[e], 9));
      EXPECT_EQ(plan.kept[e], next[e]);
      kept += plan.kept[e];
    }
    EXPECT_EQ(plan.num_dropped, 80 - kept);
    EXPECT_EQ(plan.starts.back(), kept);
  }
}

TEST(CapacityPlanTest, ProbabilityKeepsTheLargestWeights) {
  const auto gate = route(make_gate("softk", 5, 2), random_logits(40, 5, 32));
  const auto plan = plan_capacity<double>(gate, {.order = DropOrder::probability, .capacity = 4});
  for (std::size_t i = 0; i < gate.ids.size(); ++i) {
    for (std::size_t j = 0; j < gate.ids.size(); ++j) {
      if (gate.ids[i] == gate.ids[j] && plan.places[i] >= 0 && plan.places[j] < 0) {
        EXPECT_GE(gate.weights[i], gate.weights[j]);
      }
    }
  }
}

TEST(CapacityPlanTest, PadAndDroplessLayOutRows) {
  const auto gate = route(make_gate("softk", 4, 2), golden_logits<double>());  // counts 3, 5, 2, 2
  const auto pad = plan_capacity<double>(gate, {.mode = CapacityMode::pad, .capacity = 4});
  EXPECT_EQ(pad.starts, (std::vector<std::int64_t>{0, 4, 8, 12, 16}));
  EXPECT_EQ(pad.num_dropped, 1);
  EXPECT_EQ(pad.used_capacity(), 1.0);
  const auto all = plan_capacity<double>(gate, {.mode = CapacityMode::dropless});
  EXPECT_EQ(all.starts, (std::vector<std::int64_t>{0, 3, 8, 10, 12}));
  EXPECT_EQ(all.num_dropped, 0);
  EXPECT_EQ(all.largest_capacity, 5);
  const auto aligned = plan_capacity<double>(gate, {.mode = CapacityMode::dropless, .alignment = 4});
  EXPECT_EQ(aligned.starts, (std::vector<std::int64_t>{0, 4, 12, 16, 20}));
}

TEST(CapacityPlanTest, SkippedSelectionsTakeNoPlaceAndCountNowhere) {
  const GateOutput<float> gate{3, 2, 2, {0, -1, -1, -1, 0, 1}, {1, 0, 0, 0, .5F, .5F}};
  const auto plan = plan_capacity<float>(gate, {.capacity = 1});
  EXPECT_EQ(plan.num_selections, 3);
  EXPECT_EQ(plan.num_dropped, 1);
  EXPECT_EQ(plan.tokens_without, 0);
  EXPECT_EQ(plan.places, (std::vector<std::int32_t>{0, -1, -1, -1, -1, 0}));
  const GateOutput<float> none{0, 2, 2, {}, {}};
  const auto empty = plan_capacity<float>(none, {.capacity = 1});
  EXPECT_EQ(empty.drop_rate(), 0.0);
  EXPECT_EQ(empty.token_drop_rate(), 0.0);
}

TEST(CapacityPlanTest, NamesWhatIsWrong) {
  GateOutput<float> gate{1, 2, 2, {0, 1}, {.5F, .5F}};
  const auto refused = [&gate](const std::string& message, const CapacityOptions& options,
                               std::span<const float> priorities = {}) {
    expect_error(Errc::invalid_argument, message,
                 [&] { (void)plan_capacity<float>(gate, options, priorities); });
  };
  refused("capacity 0 is not allowed; an expert takes at least 1 token", {});
  refused("capacity -3 is not allowed; an expert takes at least 1 token", {.capacity = -3});
  const std::vector<float> two = {1, 2};
  refused("capacity: priorities of 2 tokens; only batch_prioritised looks at them", {.capacity = 1}, two);
  refused("capacity: priorities of 2 tokens for 1 tokens",
          {.order = DropOrder::batch_prioritised, .capacity = 1}, two);
  gate.ids[1] = 2;
  refused("capacity: token 0, k 1: expert 2 is outside [-1, 1]", {.capacity = 1});
  gate.ids[1] = 1;
  gate.weights[0] = std::numeric_limits<float>::quiet_NaN();
  refused("capacity: token 0, k 0: the weight is not a number", {.capacity = 1});
}

TEST(ApplyDropsTest, RenormalisesWhatIsLeft) {
  const GateOutput<double> gate{2, 2, 2, {0, 1, 0, 1}, {.3, .2, .4, .1}};
  const auto plan = plan_capacity<double>(gate, {.order = DropOrder::probability, .capacity = 1});
  // Expert 0 keeps token 1, expert 1 keeps token 0.
  const auto raw = apply_drops(gate, plan, Renormalise::no);
  EXPECT_EQ(raw.ids, (std::vector<std::int32_t>{-1, 1, 0, -1}));
  EXPECT_EQ(raw.weights, (std::vector<double>{0, .2, .4, 0}));
  EXPECT_EQ(apply_drops(gate, plan, Renormalise::to_one).weights, (std::vector<double>{0, 1, 1, 0}));
  const auto kept = apply_drops(gate, plan, Renormalise::keep_sum);
  EXPECT_NEAR(kept.weights[1], .5, 1e-15);
  EXPECT_NEAR(kept.weights[2], .5, 1e-15);
}

TEST(ApplyDropsTest, TokenWithoutExpertsStaysAtZero) {
  const GateOutput<double> gate{2, 1, 1, {0, 0}, {.3, .2}};
  const auto plan = plan_capacity<double>(gate, {.capacity = 1});
  const auto out = apply_drops(gate, plan, Renormalise::to_one);
  EXPECT_EQ(out.weights, (std::vector<double>{1, 0}));
  const auto grads = apply_drops_backward<double>(gate, plan, Renormalise::to_one, std::vector<double>{1, 1});
  EXPECT_EQ(grads[1], 0.0);
}

}  // namespace
}  // namespace shunt

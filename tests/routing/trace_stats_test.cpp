#include <gtest/gtest.h>

#include <shunt/routing/trace_stats.h>

#include "expect_error.h"

namespace shunt {
namespace {

using test::expect_error;

TEST(MakeTraceTest, RepeatsItsSpecification) {
  const RoutingShape shape{30, 2, 16, 3};
  const Trace trace = make_trace(parse_routing("powerlaw:1.2"), shape, 5, 4);
  ASSERT_EQ(trace.steps.size(), 4U);
  const Router router(parse_routing("powerlaw:1.2"), {120, 2, 16, 3}, 5);
  for (std::int32_t group = 0; group < 2; ++group) {
    const Routing whole = router.route(group);
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    for (const auto& step : trace.steps) {
      const Routing& part = step[static_cast<std::size_t>(group)];
      EXPECT_EQ(part.num_tokens, 30);
      ids.insert(ids.end(), part.ids.begin(), part.ids.end());
      weights.insert(weights.end(), part.weights.begin(), part.weights.end());
    }
    EXPECT_EQ(ids, whole.ids);
    EXPECT_EQ(weights, whole.weights);
  }
}

TEST(MakeTraceTest, GatesOnRandomLogits) {
  const RoutingShape shape{200, 2, 16, 4};
  const Trace even = make_gate_trace(make_gate("deepseek-v3", 16, 4), shape, 5, 3, {});
  const Trace skewed = make_gate_trace(make_gate("deepseek-v3", 16, 4), shape, 5, 3, {.skew = 2});
  const auto cv = [](const Trace& trace) { return describe_trace(trace, TraceDetail::whole)[0].load.cv; };
  EXPECT_LT(cv(even), 0.1);
  // 200 draws of such a gate written apart from the library lie in [0.75, 1.64].
  EXPECT_GT(cv(skewed), 0.7);
  // Expert choice: rows of different widths become one width, every expert has its n tokens in each group and step.
  const Trace choice = make_gate_trace(make_gate("expert-choice", 16, 4), shape, 5, 3, {.skew = 2});
  EXPECT_GT(choice.top_k, 4);
  EXPECT_EQ(describe_trace(choice, TraceDetail::whole)[0].counts, std::vector<std::int64_t>(16, 300));
  EXPECT_EQ(make_gate_trace(make_gate("hash", 16, 4), shape, 5, 1, {}).steps[0][0].num_tokens, 200);
  const Trace again = make_gate_trace(make_gate("deepseek-v3", 16, 4), shape, 5, 3, {.skew = 2});
  EXPECT_EQ(again.steps[2][1].ids, skewed.steps[2][1].ids);
  expect_error(Errc::invalid_argument, "trace: 0 steps; at least 1 is needed",
               [&] { (void)make_gate_trace(make_gate("softk", 16, 4), shape, 5, 0, {}); });
  expect_error(Errc::invalid_argument, "trace: skew -1 is not a finite number >= 0",
               [&] { (void)make_gate_trace(make_gate("softk", 16, 4), shape, 5, 1, {.skew = -1}); });
}

TEST(MakeTraceTest, NetworksJitterAndNoiseChangeTheTrace) {
  const RoutingShape shape{50, 2, 16, 4};
  const auto ids = [&shape](const TraceLogits& of) {
    return make_gate_trace(make_gate("softk", 16, 4), shape, 5, 2, of).steps[1][1].ids;
  };
  std::vector<std::vector<std::int32_t>> seen{ids({}), ids({.noise = 1})};
  for (const char* network : {"linear", "mlp", "mlp-hadamard", "cosine"}) {
    seen.push_back(ids({.network = network}));
    EXPECT_EQ(seen.back(), ids({.network = network}));
  }
  seen.push_back(ids({.network = "linear", .hidden = 63}));
  seen.push_back(ids({.network = "linear", .jitter = 0.5}));
  seen.push_back(ids({.network = "linear", .noise = 1}));
  for (std::size_t a = 0; a < seen.size(); ++a)
    for (std::size_t b = 0; b < a; ++b) EXPECT_NE(seen[a], seen[b]) << a << " and " << b;
  expect_error(Errc::invalid_argument, "trace: jitter 0.5 is of what a network reads, and there is none",
               [&] { (void)ids({.jitter = 0.5}); });
}

TEST(DescribeTraceTest, CountsByHand) {
  const Trace trace = read_trace("data/traces/example.jsonl");
  const std::vector<double> factors = {1.0, 4.0};
  const auto loads = describe_trace(trace, TraceDetail::steps, factors);
  ASSERT_EQ(loads.size(), 3U);
  const TraceLoad& all = loads[0];
  EXPECT_EQ(all.tokens, 13);
  EXPECT_EQ(all.selections, 25);
  EXPECT_EQ(all.skipped, 1);
  EXPECT_EQ(all.counts, (std::vector<std::int64_t>{10, 2, 2, 2, 2, 2, 3, 2}));
  EXPECT_EQ(loads[1].tokens + loads[2].tokens, 13);
  EXPECT_EQ(loads[2].step, 1);
  // Capacity 1 of each expert in every group and step; expert 0 loses 2, 1, 2 and 1.
  EXPECT_NEAR(all.drop_rates[0], 6.0 / 25, 1e-12);
  EXPECT_EQ(all.drop_rates[1], 0.0);
  EXPECT_EQ(describe_trace(trace, TraceDetail::groups).size(), 3U);
  const std::string text = format_trace_loads(trace, loads, factors);
  EXPECT_NE(text.find("drop@1"), std::string::npos) << text;
  EXPECT_NE(text.find("# busiest experts: 0 (10) 6 (3)"), std::string::npos) << text;
  EXPECT_EQ(trace_load_records(trace, loads, factors).size(), 3U);
  const std::vector<double> bad = {0.0};
  expect_error(Errc::invalid_argument, "capacity (ceil): factor 0 is not a finite number > 0",
               [&] { (void)describe_trace(trace, TraceDetail::whole, bad); });
}

// Rows of expert choice are as wide as the most chosen token needs; capacity goes by the choices.
TEST(TraceStatsTest, CapacityOfExpertChoiceGoesByItsChoices) {
  GateConfig gate = make_gate("expert-choice", 8, 2);
  const Trace trace = make_gate_trace(gate, {.num_tokens = 64, .num_groups = 1}, 17, 1, {.skew = 1});
  ASSERT_GT(trace.top_k, 2);
  const std::vector<double> factors = {0.25, 1};
  const auto loads = describe_trace(trace, TraceDetail::whole, factors);
  ASSERT_EQ(loads.size(), 1U);
  EXPECT_EQ(loads[0].selections, 128);
  EXPECT_DOUBLE_EQ(loads[0].drop_rates[0], 0.75);  // every expert has 16, and room for 4
  EXPECT_DOUBLE_EQ(loads[0].drop_rates[1], 0.0);
}

TEST(TraceStatsTest, RefusesWhatNoMemoryHolds) {
  const auto make = [](std::int32_t experts, std::int64_t tokens, std::int32_t steps) {
    (void)make_gate_trace(make_gate("softk", experts, 1), {.num_tokens = tokens, .num_groups = 1}, 17, steps,
                          {});
  };
  expect_error(
      Errc::invalid_argument,
      "trace: 16777216 tokens of a group and step with 1048576 experts have 17592186044416 logits; at most "
      "2147483648 are allowed",
      [&] { make(1 << 20, 1 << 24, 1); });
  expect_error(
      Errc::invalid_argument,
      "trace: 1024 steps of 16777216 tokens are 17179869184 of a group; at most 8589934592 are allowed",
      [&] { make(4, 1 << 24, 1024); });
}

}  // namespace
}  // namespace shunt

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

#include <shunt/routing/routing.h>
#include <shunt/routing/trace.h>

#include "expect_error.h"
#include "temp_dir.h"

namespace shunt {
namespace {

using test::expect_error;

constexpr const char* kText = "text:data/text/kjv.txt";
constexpr const char* kTrace = "trace:data/traces/example.jsonl";

Routing route(const std::string& spec, const RoutingShape& shape, std::uint64_t seed = 17,
              std::int32_t group = 0) {
  return Router(parse_routing(spec), shape, seed).route(group);
}

std::vector<std::int64_t> loads(const Routing& routing) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(routing.num_experts));
  for (const std::int32_t id : routing.ids) {
    if (id >= 0) ++counts[static_cast<std::size_t>(id)];
  }
  return counts;
}

/// Most loaded expert over the mean.
double imbalance(const Routing& routing) {
  const auto counts = loads(routing);
  const auto total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) *
         static_cast<double>(counts.size()) / static_cast<double>(total);
}

double chi_square(const std::vector<double>& observed, const std::vector<double>& expected) {
  double sum = 0.0;
  for (std::size_t i = 0; i < observed.size(); ++i) {
    sum += (observed[i] - expected[i]) * (observed[i] - expected[i]) / expected[i];
  }
  return sum;
}

/// How often each ordered sequence of experts was chosen.
std::map<std::vector<std::int32_t>, double> sequences(const Routing& routing) {
  std::map<std::vector<std::int32_t>, double> counts;
  const auto k = static_cast<std::ptrdiff_t>(routing.top_k);
  for (auto it = routing.ids.begin(); it != routing.ids.end(); it += k) counts[{it, it + k}] += 1.0;
  return counts;
}

/// Chi-square of the chosen sequences against successive sampling without replacement with these weights;
/// sequences expected less than 5 times are pooled.
double successive_chi_square(const Routing& routing, const std::vector<double>& weights, std::size_t& cells) {
  const auto counts = sequences(routing);
  const auto tokens = static_cast<double>(routing.num_tokens);
  std::vector<double> observed = {0.0};
  std::vector<double> expected = {1e-9};
  std::vector<std::int32_t> sequence;
  const auto visit = [&](auto&& self, double probability, double left) -> void {
    if (static_cast<std::int32_t>(sequence.size()) == routing.top_k) {
      const auto it = counts.find(sequence);
      const double seen = it == counts.end() ? 0.0 : it->second;
      const bool rare = probability * tokens < 5.0;
      if (!rare) {
        observed.push_back(seen);
        expected.push_back(probability * tokens);
      } else {
        observed.front() += seen;
        expected.front() += probability * tokens;
      }
      return;
    }
    for (std::size_t e = 0; e < weights.size(); ++e) {
      const auto id = static_cast<std::int32_t>(e);
      if (std::find(sequence.begin(), sequence.end(), id) != sequence.end()) continue;
      sequence.push_back(id);
      self(self, probability * weights[e] / left, left - weights[e]);
      sequence.pop_back();
    }
  };
  visit(visit, 1.0, std::accumulate(weights.begin(), weights.end(), 0.0));
  cells = observed.size();
  return chi_square(observed, expected);
}

/// Weights of a power law given to the experts in the order of how often they came first.
std::vector<double> fitted_weights(const Routing& routing, double alpha) {
  std::vector<std::int64_t> firsts(static_cast<std::size_t>(routing.num_experts));
  for (std::size_t i = 0; i < routing.ids.size(); i += static_cast<std::size_t>(routing.top_k)) {
    ++firsts[static_cast<std::size_t>(routing.ids[i])];
  }
  std::vector<std::size_t> order(firsts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return firsts[a] > firsts[b]; });
  std::vector<double> weights(firsts.size());
  for (std::size_t place = 0; place < order.size(); ++place) {
    weights[order[place]] = std::pow(static_cast<double>(place + 1), -alpha);
  }
  return weights;
}

/// FNV-1a over the ids.
std::uint64_t hash_ids(const Routing& routing) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const std::int32_t id : routing.ids) {
    for (int byte = 0; byte < 4; ++byte) {
      hash = (hash ^ ((static_cast<std::uint32_t>(id) >> (8 * byte)) & 0xffU)) * 0x100000001b3U;
    }
  }
  return hash;
}

TEST(RouterTest, KeepsItsPromisesForEveryKind) {
  for (const std::string kind : {"uniform", "powerlaw:1.2", "powerlaw:30", "one", "grouped:8,4", kText}) {
    for (const std::string modifier : {"", "+mask:0.3", "+mask:1", "+uneven", "+mask:0.5+uneven"}) {
      const RoutingShape shape{200, 3, 64, 6};
      const Router router(parse_routing(kind + modifier), shape, 5);
      for (std::int32_t group = 0; group < shape.num_groups; ++group) {
        const Routing routing = router.route(group);
        SCOPED_TRACE(kind + modifier);
        ASSERT_NO_THROW(check_routing(routing, "routing"));
        EXPECT_LE(routing.num_tokens, 200);
        if (modifier.find("uneven") == std::string::npos) {
          EXPECT_EQ(routing.num_tokens, 200);
        }
        for (std::size_t t = 0; t < static_cast<std::size_t>(routing.num_tokens); ++t) {
          double sum = 0.0;
          int kept = 0;
          for (std::size_t i = t * 6; i < t * 6 + 6; ++i) {
            sum += static_cast<double>(routing.weights[i]);
            kept += routing.ids[i] >= 0 ? 1 : 0;
            ASSERT_EQ(routing.weights[i] > 0.0F, routing.ids[i] >= 0);
          }
          ASSERT_NEAR(sum, kept > 0 ? 1.0 : 0.0, 1e-6);
        }
      }
    }
  }
}

TEST(RouterTest, IsAFunctionOfSeedAndGroup) {
  for (const std::string kind : {"uniform", "powerlaw:1", "grouped:8,4", kText, "uniform+mask:0.5"}) {
    SCOPED_TRACE(kind);
    const RoutingShape shape{64, 4, 32, 4};
    EXPECT_EQ(route(kind, shape, 1, 2).ids, route(kind, shape, 1, 2).ids);
    EXPECT_EQ(route(kind, shape, 1, 2).weights, route(kind, shape, 1, 2).weights);
    EXPECT_NE(route(kind, shape, 1, 2).ids, route(kind, shape, 2, 2).ids);
    EXPECT_NE(route(kind, shape, 1, 2).ids, route(kind, shape, 1, 3).ids);
  }
}

TEST(RouterTest, FewerTokensAreAPrefixOfMore) {
  for (const std::string kind : {"uniform", "powerlaw:1", "one", "grouped:8,4", kText, "uniform+mask:0.5"}) {
    SCOPED_TRACE(kind);
    const Routing few = route(kind, {10, 4, 32, 4}, 3, 1);
    const Routing many = route(kind, {100, 4, 32, 4}, 3, 1);
    EXPECT_TRUE(std::equal(few.ids.begin(), few.ids.end(), many.ids.begin()));
    EXPECT_TRUE(std::equal(few.weights.begin(), few.weights.end(), many.weights.begin()));
  }
}

TEST(RouterTest, GivesTheSameIdsOnEveryPlatform) {
  const std::pair<const char*, std::uint64_t> golden[] = {
      {"uniform", 0xc0980fa680678a39U},
      {"powerlaw:1.2", 0xf451c4c127740d76U},
      {"grouped:8,4", 0x9382c5cccddc88f1U},
      {kText, 0x45289ee53cb67c4eU},
      {"uniform+mask:0.25+uneven", 0x1ad449b008f1e0f5U},
  };
  for (const auto& [kind, hash] : golden) {
    EXPECT_EQ(hash_ids(route(kind, {128, 4, 256, 8}, 17, 1)), hash) << kind;
  }
}

TEST(RouterTest, UniformChoosesEverySequenceEquallyOften) {
  const Routing routing = route("uniform", {60'000, 1, 6, 3});
  std::size_t cells = 0;
  // 120 sequences; 119 degrees of freedom have mean 119 and standard deviation 15.4.
  EXPECT_LT(successive_chi_square(routing, std::vector<double>(6, 1.0), cells), 119 + 4 * 15.4);
  EXPECT_EQ(cells, 121U);
}

TEST(RouterTest, UniformLoadsExpertsAlike) {
  const auto counts = loads(route("uniform", {8192, 1, 256, 8}));
  const std::vector<double> observed(counts.begin(), counts.end());
  EXPECT_LT(chi_square(observed, std::vector<double>(256, 256.0)), 255 + 4 * 22.6);
}

TEST(RouterTest, PowerLawSamplesSuccessivelyWithoutReplacement) {
  for (const double alpha : {0.5, 1.0, 2.0}) {
    SCOPED_TRACE(alpha);
    const Routing routing = route("powerlaw:" + std::to_string(alpha), {60'000, 1, 6, 3});
    std::size_t cells = 0;
    const double chi = successive_chi_square(routing, fitted_weights(routing, alpha), cells);
    const auto degrees = static_cast<double>(cells) - 1.0;
    EXPECT_LT(chi, degrees + 4.0 * std::sqrt(2.0 * degrees));
    EXPECT_GT(cells, 50U);
  }
}

TEST(RouterTest, SteepPowerLawStaysExactInItsTail) {
  // Place 0 has 92 % of the weight and place 1 most of the rest, so that later draws see little of the sum.
  const Routing routing = route("powerlaw:4", {60'000, 1, 5, 4});
  std::size_t cells = 0;
  const double chi = successive_chi_square(routing, fitted_weights(routing, 4.0), cells);
  const auto degrees = static_cast<double>(cells) - 1.0;
  EXPECT_LT(chi, degrees + 4.0 * std::sqrt(2.0 * degrees));
  EXPECT_GT(cells, 10U);
}

TEST(RouterTest, PowerLawOfZeroIsUniform) {
  const Routing routing = route("powerlaw:0", {60'000, 1, 6, 3});
  std::size_t cells = 0;
  EXPECT_LT(successive_chi_square(routing, std::vector<double>(6, 1.0), cells), 119 + 4 * 15.4);
}

TEST(RouterTest, PowerLawWithoutMeasurableTailTakesExpertsInOrder) {
  // 2^-5000 and less are 0 as doubles; all tokens then choose the same experts in the same order.
  const Routing routing = route("powerlaw:5000", {10, 1, 64, 64});
  const auto counts = sequences(routing);
  EXPECT_EQ(counts.size(), 1U);
  EXPECT_NO_THROW(check_routing(routing, "routing"));
}

TEST(RouterTest, PowerLawPermutationDependsOnSeed) {
  std::set<std::int32_t> favourites;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    favourites.insert(route("powerlaw:5000", {1, 1, 64, 1}, seed).ids[0]);
  }
  EXPECT_GT(favourites.size(), 4U);
}

TEST(RouterTest, OneSendsEveryTokenToTheFirstExperts) {
  const Routing routing = route("one", {5, 1, 16, 3});
  for (std::size_t i = 0; i < routing.ids.size(); ++i)
    EXPECT_EQ(routing.ids[i], static_cast<std::int32_t>(i % 3));
}

TEST(RouterTest, GroupedStaysWithinTopGroups) {
  const Routing routing = route("grouped:8,3", {4096, 1, 256, 8});
  std::vector<std::int64_t> group_loads(8);
  std::size_t most = 0;
  for (std::size_t t = 0; t < 4096; ++t) {
    std::set<std::int32_t> groups;
    for (std::size_t k = 0; k < 8; ++k) {
      groups.insert(routing.ids[t * 8 + k] / 32);
      ++group_loads[static_cast<std::size_t>(routing.ids[t * 8 + k] / 32)];
    }
    ASSERT_LE(groups.size(), 3U);
    most = std::max(most, groups.size());
  }
  EXPECT_EQ(most, 3U);
  for (const std::int64_t load : group_loads) EXPECT_NEAR(static_cast<double>(load), 4096.0, 300.0);
}

TEST(RouterTest, MaskSkipsItsShareAndChangesNothingElse) {
  const Routing whole = route("uniform", {20'000, 1, 64, 8});
  const Routing masked = route("uniform+mask:0.25", {20'000, 1, 64, 8});
  std::int64_t skipped = 0;
  for (std::size_t i = 0; i < whole.ids.size(); ++i) {
    if (masked.ids[i] == -1) {
      ++skipped;
    } else {
      ASSERT_EQ(masked.ids[i], whole.ids[i]);
    }
  }
  EXPECT_NEAR(static_cast<double>(skipped) / 160'000.0, 0.25, 4 * 0.00109);
}

TEST(RouterTest, UnevenBringsSeededTokenCounts) {
  const RoutingShape shape{100, 200, 16, 2};
  const Router uneven(parse_routing("uniform+uneven"), shape, 9);
  const Router even(parse_routing("uniform"), shape, 9);
  std::int64_t total = 0;
  std::set<std::int64_t> seen;
  for (std::int32_t group = 0; group < shape.num_groups; ++group) {
    const Routing routing = uneven.route(group);
    ASSERT_GE(routing.num_tokens, 0);
    ASSERT_LE(routing.num_tokens, 100);
    const Routing whole = even.route(group);
    ASSERT_TRUE(std::equal(routing.ids.begin(), routing.ids.end(), whole.ids.begin()));
    total += routing.num_tokens;
    seen.insert(routing.num_tokens);
  }
  EXPECT_NEAR(static_cast<double>(total) / 200.0, 50.0, 4 * 29.2 / std::sqrt(200.0));
  EXPECT_GT(seen.size(), 60U);
  // Text and trace obey it too.
  EXPECT_LT(route(std::string(kText) + "+uneven", {1000, 4, 16, 2}).num_tokens, 1000);
  EXPECT_LT(route(std::string(kTrace) + "+uneven", {1000, 2, 8, 2}).num_tokens, 1000);
}

TEST(RouterTest, TextLoadsExpertsLessEvenlyThanUniform) {
  for (const RoutingShape& shape : {RoutingShape{4096, 1, 64, 6}, RoutingShape{4096, 1, 256, 8}}) {
    const double text = imbalance(route(kText, shape));
    EXPECT_GT(text, 1.5 * imbalance(route("uniform", shape)));
  }
}

TEST(RouterTest, TextGivesEqualWordsInEqualContextEqualExperts) {
  const test::TempDir dir;
  const std::string path = dir.write("t.txt", "a b c a b d");
  const Routing routing = route("text:" + path, {12, 1, 64, 4});
  const auto experts = [&](std::size_t t) {
    return std::vector<std::int32_t>(routing.ids.begin() + static_cast<std::ptrdiff_t>(t * 4),
                                     routing.ids.begin() + static_cast<std::ptrdiff_t>(t * 4 + 4));
  };
  EXPECT_EQ(experts(1), experts(4));  // b after a
  EXPECT_NE(experts(0), experts(1));
  EXPECT_NE(experts(0), experts(3));  // a after d, a after c: the context counts
  for (std::size_t t = 0; t < 6; ++t) EXPECT_EQ(experts(t), experts(t + 6));  // The text starts again.
  for (std::size_t t = 0; t < 12; ++t) {
    EXPECT_TRUE(std::is_sorted(routing.weights.begin() + static_cast<std::ptrdiff_t>(t * 4),
                               routing.weights.begin() + static_cast<std::ptrdiff_t>(t * 4 + 4),
                               std::greater<>()));
  }
}

TEST(RouterTest, TextGroupsContinueWhereTheFormerEnds) {
  const test::TempDir dir;
  const std::string path = dir.write("t.txt", "one two three four five six seven eight");
  const Router router(parse_routing("text:" + path), {4, 2, 64, 4}, 17);
  const Routing all = route("text:" + path, {8, 1, 64, 4});
  std::vector<std::int32_t> joined = router.route(0).ids;
  const Routing second = router.route(1);
  joined.insert(joined.end(), second.ids.begin(), second.ids.end());
  EXPECT_EQ(joined, all.ids);
}

TEST(RouterTest, TraceRepeatsItsGroupsStepAfterStep) {
  const Trace trace = read_trace("data/traces/example.jsonl");
  ASSERT_EQ(trace.steps.size(), 2U);
  ASSERT_EQ(trace.steps[0].size(), 2U);
  const Routing& first = trace.steps[0][1];
  const Routing& next = trace.steps[1][1];
  const Routing routing = route(kTrace, {100, 2, trace.num_experts, trace.top_k}, 17, 1);
  std::vector<std::int32_t> expected = first.ids;
  expected.insert(expected.end(), next.ids.begin(), next.ids.end());
  expected.insert(expected.end(), first.ids.begin(), first.ids.end());
  ASSERT_LE(expected.size(), routing.ids.size());
  EXPECT_TRUE(std::equal(expected.begin(), expected.end(), routing.ids.begin()));
  EXPECT_TRUE(std::equal(first.weights.begin(), first.weights.end(), routing.weights.begin()));
  // A third group continues after the tokens that group 0 took.
  const std::int64_t tokens = trace.steps[0][0].num_tokens;
  const Routing third = route(kTrace, {tokens, 3, trace.num_experts, trace.top_k}, 17, 2);
  const auto& later = trace.steps[1][0];
  EXPECT_TRUE(std::equal(later.ids.begin(), later.ids.end(), third.ids.begin()));
}

TEST(RouterTest, RefusesTraceOfOtherShape) {
  expect_error(
      Errc::invalid_argument,
      "data/traces/example.jsonl: the trace has 8 experts and top-k 2; asked for are 256 experts and top-k 8",
      [] {
        (void)route(kTrace, {1, 1, 256, 8});
      });
}

TEST(RouterTest, RefusesTraceGroupWithoutTokens) {
  const test::TempDir dir;
  const std::string path = dir.file("t.jsonl");
  Trace trace;
  trace.num_experts = 4;
  trace.top_k = 1;
  trace.steps = {{Routing{1, 1, 4, {2}, {1.0F}}, Routing{0, 1, 4, {}, {}}}};
  write_trace(path, trace);
  EXPECT_EQ(route("trace:" + path, {3, 1, 4, 1}).ids, (std::vector<std::int32_t>{2, 2, 2}));
  EXPECT_TRUE(route("trace:" + path, {0, 2, 4, 1}, 17, 1).ids.empty());
  expect_error(
      Errc::invalid_argument,
      path + ": group 1 has no tokens in any step, so that 3 tokens per group cannot be taken from it", [&] {
        (void)route("trace:" + path, {3, 2, 4, 1});
      });
}

TEST(RouterTest, NamesSpecAndShapeThatDisagree) {
  struct Case {
    const char* spec;
    RoutingShape shape;
    const char* message;
  };
  const Case cases[] = {
      {"uniform", {-1, 1, 8, 2}, "routing uniform: -1 tokens per group; allowed are 0 to 8589934591"},
      {"uniform", {1, 0, 8, 2}, "routing uniform: 0 groups; at least 1 is needed"},
      {"uniform", {1, 1, 0, 1}, "routing uniform: 0 experts; at least 1 is needed"},
      {"uniform", {1, 1, 8, 9}, "routing uniform: top-k 9 is outside [1, 8], the number of experts"},
      {"one", {1, 1, 8, 0}, "routing one: top-k 0 is outside [1, 8], the number of experts"},
      {"grouped:3,2", {1, 1, 8, 2}, "routing grouped:3,2: 3 expert groups do not divide 8 experts"},
      {"grouped:4,1",
       {1, 1, 8, 3},
       "routing grouped:4,1: 1 groups of 2 experts hold 2 experts, fewer than top-k 3"},
  };
  for (const Case& c : cases) {
    expect_error(Errc::invalid_argument, c.message, [&] { (void)route(c.spec, c.shape); });
  }
  RoutingSpec spec;
  spec.mask_share = -0.5;
  expect_error(Errc::invalid_argument, "routing uniform+mask:-0.5: mask share -0.5 is outside [0, 1]", [&] {
    (void)Router(spec, {1, 1, 8, 2}, 1);
  });
  spec = RoutingSpec();
  spec.kind = RoutingKind::power_law;
  spec.alpha = -1.0;
  expect_error(Errc::invalid_argument, "routing powerlaw:-1: alpha -1 is not a finite number >= 0", [&] {
    (void)Router(spec, {1, 1, 8, 2}, 1);
  });
  spec = RoutingSpec();
  spec.kind = RoutingKind::grouped;
  spec.groups = 4;
  spec.top_groups = 5;
  expect_error(Errc::invalid_argument, "routing grouped:4,5: top groups 5 is outside [1, 4]", [&] {
    (void)Router(spec, {1, 1, 8, 2}, 1);
  });
  expect_error(Errc::io, "none.txt: cannot open: No such file or directory", [] {
    (void)route("text:none.txt", {1, 1, 8, 2});
  });
  expect_error(Errc::invalid_argument, "routing uniform: group 2 is outside [0, 1]", [] {
    (void)route("uniform", {1, 2, 8, 2}, 1, 2);
  });
}

TEST(RouterTest, WorksWithNoTokensOneExpertAndAllExperts) {
  EXPECT_TRUE(route("uniform", {0, 1, 8, 2}).ids.empty());
  EXPECT_TRUE(route(kText, {0, 1, 8, 2}).ids.empty());
  EXPECT_EQ(route("uniform", {2, 1, 1, 1}).ids, (std::vector<std::int32_t>{0, 0}));
  EXPECT_EQ(route("uniform", {2, 1, 1, 1}).weights, (std::vector<float>{1.0F, 1.0F}));
  for (const char* kind : {"uniform", "powerlaw:2", "grouped:2,2", kText}) {
    std::vector<std::int32_t> ids = route(kind, {1, 1, 8, 8}).ids;
    std::sort(ids.begin(), ids.end());
    EXPECT_EQ(ids, (std::vector<std::int32_t>{0, 1, 2, 3, 4, 5, 6, 7})) << kind;
  }
}

TEST(RouterTest, CanBeMoved) {
  Router a(parse_routing("powerlaw:1"), {4, 1, 8, 2}, 3);
  const auto ids = a.route(0).ids;
  Router b(std::move(a));
  EXPECT_EQ(b.route(0).ids, ids);
  Router c(parse_routing("one"), {1, 1, 1, 1}, 0);
  c = std::move(b);
  EXPECT_EQ(c.route(0).ids, ids);
}

}  // namespace
}  // namespace shunt

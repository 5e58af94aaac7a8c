#include <shunt/plan/search.h>

#include <algorithm>

#include "models.h"

namespace shunt::plan {
namespace {

Machine machine(const std::string& node, std::int64_t hosts) {
  return make_machine(find_node(node, "presets/hardware"), {hosts, 1, 0});
}

SearchOptions serving(const ModelSpec& model, const Machine& m, Phase phase) {
  SearchOptions options;
  options.base.step.phase = phase;
  use_published_formats(model, m, options.base.step);
  return options;
}

TEST(SearchTest, FindsTrainingLayoutsThatFit) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 4);
  SearchOptions options;
  options.base.global_batch = 256;
  options.most_pp = 4;
  const SearchResult found = search_plans(model, m, options, nullptr);
  ASSERT_FALSE(found.best.empty());
  std::int64_t rejected = 0;
  for (const auto& one : found.rejected) rejected += one.count;
  EXPECT_EQ(rejected + found.feasible, found.tried);
  double last = 1e300;
  for (const PlanResult& plan : found.best) {
    EXPECT_TRUE(plan.fits);
    EXPECT_EQ(plan.time.options.layout.world(), 32);
    EXPECT_LE(plan.time.tokens_per_s_per_gpu, last);
    last = plan.time.tokens_per_s_per_gpu;
  }
  // No plan of the front is better than another in both.
  for (std::size_t i = 1; i < found.front.size(); ++i) {
    EXPECT_LT(found.front[i].time.tokens_per_s_per_gpu, found.front[i - 1].time.tokens_per_s_per_gpu);
    EXPECT_LT(found.front[i].memory.worst_stage().total(), found.front[i - 1].memory.worst_stage().total());
  }
  const SearchResult again = search_plans(model, m, options, nullptr);
  EXPECT_EQ(layout_name(again.best.front().time.options.layout),
            layout_name(found.best.front().time.options.layout));
  EXPECT_EQ(again.front.size(), found.front.size());
}

TEST(SearchTest, MeetsATimeBetweenTokens) {
  const ModelSpec model = preset("r1");
  const Machine m = machine("hgx-h20", 4);
  SearchOptions options = serving(model, m, Phase::decode);
  options.tpot_ms = 60;
  options.batches = {8, 64};
  const SearchResult found = search_plans(model, m, options, nullptr);
  ASSERT_FALSE(found.best.empty());
  for (const PlanResult& plan : found.best) EXPECT_LE(plan.time.tpot_ms, 60);
  for (std::size_t i = 1; i < found.front.size(); ++i)
    EXPECT_LT(found.front[i].time.tpot_ms, found.front[i - 1].time.tpot_ms);
  options.tpot_ms = 1e-3;
  const SearchResult none = search_plans(model, m, options, nullptr);
  EXPECT_TRUE(none.best.empty());
  EXPECT_EQ(none.feasible, 0);
  EXPECT_TRUE(std::any_of(none.rejected.begin(), none.rejected.end(), [](const auto& one) {
    return one.reason == "time between tokens above the target" && one.count > 0;
  }));
}

TEST(SearchTest, SaysWhyNothingFits) {
  const ModelSpec model = preset("r1");
  const Machine m = machine("dgx-a100-40", 1);
  const Report report = report_search(model, m, serving(model, m, Phase::prefill), nullptr);
  EXPECT_EQ(report.summary.back(), "no plan fits");
  EXPECT_EQ(std::get<std::int64_t>(*report.head.find("feasible")), 0);
  ASSERT_FALSE(report.tables[2].rows.empty());
}

TEST(SearchTest, RefusesWhatNoLayoutCanBePricedFor) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 1);
  SearchOptions options = serving(model, m, Phase::prefill);
  options.base.step.prompt = 100;
  options.base.step.cached = 200;
  expect_refused("cached 200: expected less than the prompt of 100 tokens, and no negative number",
                 [&] { (void)search_plans(model, m, options, nullptr); });
  SearchOptions training;
  training.base.step.layout.cp = 3;
  expect_refused("cp 3: no layout of 8 GPUs has it",
                 [&] { (void)search_plans(model, m, training, nullptr); });
  // Reasons keep the ranges that they name.
  training.base.step.layout.cp = 1;
  training.base.global_batch = 8;
  for (const auto& one : search_plans(model, m, training, nullptr).rejected)
    EXPECT_EQ(one.reason.find("[N"), std::string::npos) << one.reason;
}

TEST(SearchTest, Refuses) {
  const ModelSpec model = preset("r1");
  const Machine m = machine("dgx-h100", 1);
  const auto refused = [&](const std::string& message, auto change) {
    SearchOptions options;
    change(options);
    expect_refused(message, [&] { (void)search_plans(model, m, options, nullptr); });
  };
  refused("a time between tokens is a target of --phase decode", [](auto& o) { o.tpot_ms = 5; });
  refused("a time to the first token is a target of --phase prefill", [](auto& o) { o.ttft_ms = 5; });
  refused("tokens/s -1: expected a number in [0, 1e15]", [](auto& o) { o.tokens_per_s = -1; });
  refused("batches to try are for prefill and decode", [](auto& o) { o.batches = {1}; });
  refused("training takes all GPUs: give a smaller cluster", [](auto& o) { o.most_gpus = 4; });
}

}  // namespace
}  // namespace shunt::plan

#include <shunt/plan/breakdown.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "models.h"

namespace shunt::plan {
namespace {

Machine machine(const std::string& node, std::int64_t hosts) {
  return make_machine(find_node(node, "presets/hardware"), {hosts, 1, 0});
}

PlanOptions training(std::int64_t tp, std::int64_t pp, std::int64_t dp, std::int64_t ep) {
  PlanOptions options;
  Layout& layout = options.step.layout;
  layout.tp = tp;
  layout.pp = pp;
  layout.dp = dp;
  layout.ep = ep;
  options.step.training.microbatches = 16;
  return options;
}

TEST(BreakdownTest, RanksFormTheGroupsOfTheLayout) {
  const Machine m = machine("dgx-h100", 8);
  Layout layout;
  layout.tp = 2;
  layout.pp = 2;
  layout.dp = 16;
  layout.ep = 8;
  layout = resolve(layout, preset("qwen3-30b"));
  const std::vector<ParallelGroup> groups = parallel_groups(m, layout);
  // Ranks of one group differ in its index only, by its stride.
  std::set<std::vector<std::int64_t>> attention;
  std::set<std::vector<std::int64_t>> experts;
  for (std::int64_t rank = 0; rank < layout.world(); ++rank) {
    const RankIndices i = rank_indices(layout, rank);
    attention.insert({i.tp, i.cp, i.dp, i.pp});
    experts.insert({i.etp, i.ep, i.edp, i.pp});
    if (i.ep + 1 < layout.ep) {
      EXPECT_EQ(rank_indices(layout, rank + layout.etp).ep, i.ep + 1);
    }
    if (i.dp + 1 < layout.dp) {
      EXPECT_EQ(rank_indices(layout, rank + layout.tp).dp, i.dp + 1);
    }
  }
  EXPECT_EQ(attention.size(), 64U);
  EXPECT_EQ(experts.size(), 64U);
  const auto group = [&](const std::string& name) {
    return *std::find_if(groups.begin(), groups.end(),
                         [&](const ParallelGroup& one) { return one.name == name; });
  };
  EXPECT_EQ(group("tp").place.domains, 1);
  EXPECT_EQ(group("pp").stride, 32);
  EXPECT_EQ(group("edp").size, 4);
  expect_refused("rank 64: the layout has ranks 0 to 63", [&] { (void)rank_indices(layout, 64); });
}

TEST(BreakdownTest, AddsTimeAndMemoryOfOnePlan) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 8);
  const PlanResult r = evaluate_plan(model, m, training(1, 4, 16, 8), nullptr);
  EXPECT_EQ(r.memory.options.training.microbatches, 16);
  EXPECT_EQ(r.memory.megatron.weights_optimizer_bytes, 20063312640.0);
  // From the stages: 16 microbatches of the busiest, one of each other (1F1B), and what follows them.
  double most = 0;
  double all = 0;
  for (const StageTime& stage : r.time.stages) {
    const double busy = stage.forward_us + stage.backward_us + 2 * stage.send_us;
    most = std::max(most, busy);
    all += busy;
  }
  const double step = 15 * most + all + r.time.exposed_us("gradient_sync") + r.time.exposed_us("optimizer");
  EXPECT_NEAR(step / r.time.step_us, 1, 1e-6);
  const std::vector<double> values = metric_values(r);
  ASSERT_EQ(values.size(), plan_metrics().size());
  EXPECT_EQ(values[0], 64);
  EXPECT_TRUE(std::isnan(values[5]));  // First token: no training metric
}

TEST(BreakdownTest, GlobalBatchGivesMicrobatches) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 8);
  PlanOptions options = training(1, 4, 16, 8);
  options.global_batch = 512;
  EXPECT_EQ(evaluate_plan(model, m, options, nullptr).time.options.training.microbatches, 32);
  options.global_batch = 500;
  expect_refused("global batch 500: dp 16 * micro batch 1 does not divide it",
                 [&] { (void)evaluate_plan(model, m, options, nullptr); });
}

TEST(BreakdownTest, FindsWhatIsWrong) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 8);
  const auto says = [](const std::vector<std::string>& list, const std::string& text) {
    return std::any_of(list.begin(), list.end(),
                       [&](const std::string& one) { return one.find(text) != std::string::npos; });
  };
  // Few microbatches on many stages idle, and experts on the network are far.
  PlanOptions idle = training(1, 8, 8, 8);
  idle.step.training.microbatches = 8;
  const Findings bubble = judge(model, m, evaluate_plan(model, m, idle, nullptr));
  EXPECT_TRUE(says(bubble.hot_spots, "the pipeline idles for"));
  EXPECT_TRUE(says(bubble.advice, "--schedule "));
  // Advice that names interleaved must be a command that runs: it needs chunks.
  for (const std::string& one : bubble.advice) {
    if (one.find("--schedule interleaved") == std::string::npos) continue;
    EXPECT_NE(one.find("--chunks 2"), std::string::npos) << one;
  }
  PlanOptions whole = training(1, 1, 64, 1);
  const PlanResult big = evaluate_plan(model, m, whole, nullptr);
  EXPECT_FALSE(big.fits);
  const Findings memory = judge(model, m, big);
  EXPECT_TRUE(says(memory.hot_spots, "too much"));
  EXPECT_TRUE(says(memory.advice, "--zero 2")) << memory.advice.front();
  const ModelSpec deepseek = preset("r1");
  PlanOptions decode;
  decode.step.phase = Phase::decode;
  decode.step.layout.dp = decode.step.layout.ep = 64;
  decode.step.sequences = 4;
  use_published_formats(deepseek, m, decode.step);
  const Findings far = judge(deepseek, m, evaluate_plan(deepseek, m, decode, nullptr));
  EXPECT_TRUE(says(far.hot_spots, "ep 64 spans 8 scale-up domains"));
  EXPECT_TRUE(says(far.hot_spots, "reading its weights is the cost"));
}

TEST(BreakdownTest, ReportHasChecksGroupsAndRanks) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 8);
  const Report report = report_breakdown(model, m, training(1, 4, 16, 8), nullptr);
  EXPECT_EQ(report.tables.front().key, "checks");
  EXPECT_EQ(report.tables.back().key, "ranks");
  EXPECT_EQ(report.tables.back().rows.size(), 64U);
  const std::string json = render(report, Format::json);
  for (const char* part : {"\"record\":\"plan_breakdown\"",
                           "\"fits\":", "\"total_bytes\":", "\"group\":\"edp\"", "\"part\":\"optimizer\""})
    EXPECT_NE(json.find(part), std::string::npos) << part;
  // The list of ranks is for programs.
  EXPECT_EQ(render(report, Format::text).find("rail"), std::string::npos);
}

TEST(BreakdownTest, RefusesImpossiblePlans) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 8);
  const auto refused = [&](const std::string& message, const PlanOptions& options) {
    expect_refused(message, [&] { (void)evaluate_plan(model, m, options, nullptr); });
  };
  refused("tp 1 * cp 1 * dp 8 * pp 4 = 32 GPUs, but 8 hosts dgx-h100 have 64", training(1, 4, 8, 8));
  refused("ep 3 does not divide the 8 experts of mixtral-8x7b; 1 redundant experts would make it 3 on each",
          training(1, 4, 16, 3));
  refused("tp 3 does not divide the 32 attention heads of mixtral-8x7b", training(3, 4, 16, 8));
  refused("pp 64: mixtral-8x7b has only 32 layers", training(1, 64, 1, 1));
  refused("dp -16: expected a number in [1, 65536]", training(1, 4, -16, 8));
  PlanOptions idle = training(1, 4, 8, 8);
  idle.idle_gpus = true;
  EXPECT_EQ(evaluate_plan(model, m, idle, nullptr).time.options.layout.world(), 32);
}

TEST(CompareTest, NamesTheBetterPlan) {
  const ModelSpec model = preset("mixtral-8x7b");
  const Machine m = machine("dgx-h100", 8);
  const std::vector<double> a = metric_values(evaluate_plan(model, m, training(1, 4, 16, 8), nullptr));
  const std::vector<double> b = metric_values(evaluate_plan(model, m, training(8, 4, 2, 1), nullptr));
  const auto judged = [](const Report& report, const std::string& title) {
    for (const auto& row : report.tables[0].rows)
      if (std::get<std::string>(row[0]) == title) return std::get<std::string>(row[4]);
    return std::string("missing");
  };
  // dp 16 has eight times the tokens of dp 2, so the times of a step say nothing.
  const Report report = report_compare({"a", a}, {"b", b});
  EXPECT_EQ(judged(report, "step us"), "-");
  EXPECT_EQ(judged(report, "exposed communication us"), "-");
  ASSERT_EQ(report.notes.size(), 1U);
  EXPECT_NE(report.notes[0].find("their times are of different work"), std::string::npos) << report.notes[0];
  std::vector<double> faster = a;
  std::size_t changed = 0;
  for (std::size_t i = 0; i < faster.size(); ++i) {
    const std::string key = plan_metrics()[i].key;
    if (key != "step_us" && key != "tokens_per_s") continue;
    faster[i] *= key == "step_us" ? 0.5 : 2;
    ++changed;
  }
  ASSERT_EQ(changed, 2U);
  const Report same_batch = report_compare({"a", a}, {"b", faster});
  EXPECT_TRUE(same_batch.notes.empty());
  EXPECT_EQ(judged(same_batch, "step us"), "B");
  EXPECT_EQ(judged(same_batch, "tokens/s"), "B");
  for (const auto& row : same_batch.tables[0].rows) {
    if (std::get<std::string>(row[0]) == "step us") {
      EXPECT_NEAR(std::get<double>(row[3]), 0.5, 1e-4);
    }
  }
  std::vector<double> large = b;
  for (std::size_t i = 0; i < large.size(); ++i)
    if (plan_metrics()[i].key == "margin_bytes") large[i] = -kGiB;
  EXPECT_EQ(report_compare({"a", a}, {"b", large}).summary.back(), "B does not fit: 1.000 GiB too much");
  const std::vector<double> none(a.size(), std::nan(""));
  expect_refused("a and b have no number in common", [&] { (void)report_compare({"a", a}, {"b", none}); });
}

}  // namespace
}  // namespace shunt::plan

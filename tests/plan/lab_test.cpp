#include <shunt/plan/lab.h>

#include <cmath>
#include <cstdlib>

#include "models.h"

namespace shunt::plan::lab {
namespace {

// What the lab's own program prints, executed at eb2e8d4a: milliseconds, tokens per second, GiB.
struct Printed {
  const char* spec;
  const char* target;
  Role role;
  double compute, dp, pipeline, ep, step, tokens, params, activations, total, margin;
};

constexpr Role B = Role::baseline;
constexpr Role O = Role::optimized;
constexpr const char* kDgx = "dgx_a100_175b";
constexpr const char* kIb = "gpt_oss_120b_gb200_ib";

constexpr Printed kPrinted[] = {
    {kDgx, "parallelism_breakdown", B, 393.216, 6519.258, 3600, 240, 10752.474, 48759.8, 10.1863, 9.2500,
     55.0885, 24.9115},
    {kDgx, "parallelism_breakdown", O, 196.608, 3259.629, 2880, 30, 6366.237, 658835.7, 10.1863, 10.7500,
     56.5885, 23.4115},
    {kDgx, "pipeline_schedule", B, 98.304, 3259.629, 630, 5.625, 3993.558, 98462.6, 30.5590, 11.0312,
     148.5468, -68.5468},
    {kDgx, "pipeline_schedule", O, 196.608, 3259.629, 3600, 37.5, 7093.737, 739085.8, 11.0352, 10.7875,
     60.4459, 19.5541},
    {kDgx, "moe_grouping", B, 73.728, 6519.258, 1620, 472.5, 8685.486, 135818.3, 5.0932, 7.1641, 30.0833,
     49.9167},
    {kDgx, "moe_grouping", O, 196.608, 3259.629, 3240, 33.75, 6729.987, 701129.4, 10.1863, 10.7500, 56.5885,
     23.4115},
    {kDgx, "memory_budget", B, 393.216, 3259.629, 8640, 210, 12502.845, 1006403.9, 10.1863, 24.2500, 70.0885,
     9.9115},
    {kDgx, "memory_budget", O, 196.608, 3259.629, 2880, 30, 6366.237, 658835.7, 10.1863, 10.2438, 56.0823,
     23.9177},
    {kDgx, "network_affinity", B, 98.304, 1629.8145, 300, 21.875, 2049.9935, 1278755.3, 20.3727, 12.4375,
     104.1146, -24.1146},
    {kDgx, "network_affinity", O, 196.608, 3259.629, 3240, 33.75, 6729.987, 701129.4, 10.1863, 10.5813,
     56.4198, 23.5802},
    {kIb, "parallelism_breakdown", B, 786.432, 558.7935, 750, 50, 2145.2255, 488795.2, 6.9849, 12.7500,
     44.1821, 147.8179},
    {kIb, "parallelism_breakdown", O, 393.216, 279.3968, 600, 16.6667, 1289.2794, 6506431.2, 6.9849, 16.5000,
     47.9321, 144.0679},
    {kIb, "pipeline_schedule", B, 196.608, 279.3968, 131.25, 3.125, 610.3798, 1288430.6, 20.9548, 15.8750,
     110.1714, 81.8286},
    {kIb, "pipeline_schedule", O, 393.216, 279.3968, 750, 20.8333, 1443.4461, 7264393.1, 7.5670, 16.3750,
     50.4265, 141.5735},
    {kIb, "moe_grouping", B, 147.456, 558.7935, 337.5, 98.4375, 1142.1870, 2065595.1, 3.4925, 9.6250, 25.3411,
     166.6589},
    {kIb, "moe_grouping", O, 393.216, 279.3968, 675, 18.75, 1366.3628, 6906792.4, 6.9849, 16.5000, 47.9321,
     144.0679},
};

Evaluation evaluated(const char* spec, const char* target, Role role) {
  Settings settings;
  settings.spec = spec;
  return run(find_target(target), role, settings).evaluation;
}

TEST(LabTest, PrintsTheLabsOwnDigits) {
  for (const Printed& p : kPrinted) {
    const Evaluation e = evaluated(p.spec, p.target, p.role);
    const std::string where =
        std::string(p.spec) + " " + p.target + (p.role == B ? " baseline" : " optimized");
    // Half of the last digit that was printed.
    const double time = p.spec == kDgx ? 5.1e-4 : 5.1e-5;
    EXPECT_NEAR(e.compute_ms, p.compute, time) << where;
    EXPECT_NEAR(e.dp_time_ms, p.dp, time) << where;
    EXPECT_NEAR(e.pipeline_time_ms, p.pipeline, 5.1e-5) << where;
    EXPECT_NEAR(e.ep_time_ms, p.ep, 5.1e-5) << where;
    EXPECT_NEAR(e.step_ms, p.step, time) << where;
    EXPECT_NEAR(e.tokens_per_s, p.tokens, 0.051) << where;
    EXPECT_NEAR(e.params_gb, p.params, 5.1e-5) << where;
    EXPECT_NEAR(e.activation_gb, p.activations, 5.1e-5) << where;
    EXPECT_NEAR(e.total_memory_gb, p.total, 5.1e-5) << where;
    EXPECT_NEAR(e.memory_margin_gb, p.margin, 5.1e-5) << where;
  }
}

TEST(LabTest, EthernetHasHalfTheNetwork) {
  const char* spec = "gpt_oss_120b_gb200_ethernet";
  EXPECT_NEAR(evaluated(spec, "parallelism_breakdown", B).step_ms, 3504.0191, 5.1e-5);
  EXPECT_NEAR(evaluated(spec, "parallelism_breakdown", B).tokens_per_s, 299249.5, 0.051);
  EXPECT_NEAR(evaluated(spec, "memory_budget", B).step_ms, 5061.8922, 5.1e-5);
  EXPECT_NEAR(evaluated(spec, "memory_budget", B).tokens_per_s, 4971623.8, 0.051);
  EXPECT_NEAR(evaluated(spec, "network_affinity", B).step_ms, 613.1576, 5.1e-5);
  EXPECT_NEAR(evaluated(spec, "network_affinity", B).tokens_per_s, 8550624.5, 0.051);
}

TEST(LabTest, BubblesAreTheLabs) {
  const auto bubbles = [](const char* target, double baseline, double optimized) {
    EXPECT_NEAR(evaluated(kIb, target, B).bubble_fraction, baseline, 5.1e-5) << target;
    EXPECT_NEAR(evaluated(kIb, target, O).bubble_fraction, optimized, 5.1e-5) << target;
  };
  bubbles("parallelism_breakdown", .6522, .1579);
  bubbles("pipeline_schedule", .5385, .1304);
  bubbles("moe_grouping", .2000, .1429);
  bubbles("memory_budget", .1111, .1579);
  bubbles("network_affinity", .0909, .1429);
  bubbles("gpt_gb200", .2258, .1351);
  bubbles("deepseek_gb200", .2258, .1220);
}

TEST(LabTest, NamesItsTargets) {
  EXPECT_EQ(targets().size(), 9U);
  for (const char* name :
       {"moe_grouping", "moe_parallelism:moe_grouping", "labs/moe_parallelism:moe_grouping"})
    EXPECT_EQ(find_target(name).name, "moe_grouping");
  expect_refused(
      "target \"moe_groping\" does not exist; did you mean \"moe_grouping\"? Allowed are alltoall_tuning, "
      "deepseek_gb200, gpt_gb200, memory_budget, moe_grouping, moe_vllm_env, network_affinity, "
      "parallelism_breakdown, pipeline_schedule",
      [] { (void)find_target("moe_groping"); });
  expect_refused(
      "spec \"dgx\" does not exist; did you mean \"dgx_a100_175b\"? Allowed are gpt_oss_120b_gb200_ib, "
      "gpt_oss_120b_gb200_ethernet, deepseek_r1_678b_gb200_ib, dgx_a100_175b",
      [] { (void)find_spec("dgx"); });
}

TEST(LabTest, RefusesPlansForOtherModels) {
  expect_refused(
      "plan \"affinity, baseline\": stage_layers must sum to total layers: they sum to 96, DeepSeek-R1-678B "
      "MoE has 128",
      [] { (void)evaluated("deepseek_r1_678b_gb200_ib", "network_affinity", B); });
  // These two bring their own.
  EXPECT_EQ(evaluated(kDgx, "deepseek_gb200", B).world_size, 576);
}

TEST(LabTest, FabricsDecideTheCollective) {
  ASSERT_EQ(unsetenv("MPE_FABRIC"), 0);
  Settings settings;
  const Target& target = find_target("alltoall_tuning");
  const plan::lab::Run nvlink = run(target, O, settings);
  EXPECT_DOUBLE_EQ(nvlink.collective_gb_per_s, 1800 * .92);
  EXPECT_DOUBLE_EQ(nvlink.evaluation.ep_time_ms, nvlink.evaluation.ep_payload_gb / (1800 * .92) * 1000);
  settings.fabric = "efa";
  EXPECT_DOUBLE_EQ(run(target, B, settings).collective_gb_per_s, 200 * .65);
  settings.fabric = "nvl72";
  expect_refused("fabric \"nvl72\" of alltoall_tuning: allowed are nvlink, ib, efa",
                 [&] { (void)run(target, B, settings); });
  const plan::lab::Run serving = run(find_target("moe_vllm_env"), B, settings);
  EXPECT_TRUE(serving.evaluation.world_size_matches);
  EXPECT_EQ(serving.evaluation.world_size, 72);
  EXPECT_DOUBLE_EQ(serving.evaluation.ep_time_ms, serving.evaluation.ep_payload_gb / (200 * .45) * 1000 + 10);
}

// The lab's custom_gpt_oss_gb200.py: gpt_gb200's plan on InfiniBand and on Ethernet with half the rate.
TEST(LabTest, GptRunsOnEitherFabric) {
  const Target& target = find_target("gpt_gb200");
  Settings settings;
  const plan::lab::Run own = run(target, B, settings);
  settings.fabric = "ib";
  EXPECT_EQ(run(target, B, settings).evaluation.step_ms, own.evaluation.step_ms);
  settings.fabric = "ethernet";
  const plan::lab::Run ethernet = run(target, B, settings);
  EXPECT_EQ(ethernet.spec, "gpt_oss_120b_gb200_ethernet");
  EXPECT_DOUBLE_EQ(ethernet.evaluation.dp_time_ms, 2 * own.evaluation.dp_time_ms);
  EXPECT_DOUBLE_EQ(ethernet.evaluation.pipeline_time_ms, 2 * own.evaluation.pipeline_time_ms);
  EXPECT_DOUBLE_EQ(ethernet.evaluation.ep_time_ms, own.evaluation.ep_time_ms);
  settings.fabric = "both";
  const Outcome both = run_targets({{&target, settings}});
  ASSERT_EQ(both.report.tables[0].rows.size(), 4U);
  EXPECT_EQ(std::get<std::string>(both.report.tables[0].rows[1][2]), "gpt_oss_120b_gb200_ib");
  EXPECT_EQ(std::get<std::string>(both.report.tables[0].rows[2][2]), "gpt_oss_120b_gb200_ethernet");
  expect_refused("fabric \"both\" of gpt_gb200 is two runs: ask for ib, then for ethernet",
                 [&] { (void)run(target, B, settings); });
  settings.fabric = "nvlink";
  expect_refused("fabric \"nvlink\" of gpt_gb200: allowed are ib, ethernet, both",
                 [&] { (void)run(target, B, settings); });
  settings.fabric = "ib";
  expect_refused("fabric \"ib\" of moe_grouping: it has none to choose",
                 [&] { (void)run(find_target("moe_grouping"), B, settings); });
}

TEST(LabTest, FollowsTheEnvironmentWhereItCan) {
  const Target& tuning = find_target("alltoall_tuning");
  const Target& serving = find_target("moe_vllm_env");
  const Settings settings;
  ASSERT_EQ(setenv("MPE_FABRIC", "efa", 1), 0);
  EXPECT_EQ(run(tuning, B, settings).fabric, "efa");
  EXPECT_EQ(run(serving, B, settings).fabric, "nvlink");
  EXPECT_EQ(run(find_target("gpt_gb200"), B, settings).fabric, "ib");
  const Outcome outcome = run_targets({{&tuning, settings}, {&serving, settings}});
  EXPECT_EQ(outcome.report.notes.front(),
            "MPE_FABRIC is efa, which moe_parallelism:moe_vllm_env does not have: it takes nvlink");
  ASSERT_EQ(setenv("MPE_FABRIC", "nvl72", 1), 0);
  EXPECT_EQ(run(serving, B, settings).fabric, "nvl72");
  expect_refused("MPE_FABRIC: fabric \"nvl72\" of alltoall_tuning: allowed are nvlink, ib, efa",
                 [&] { (void)run(tuning, B, settings); });
  ASSERT_EQ(unsetenv("MPE_FABRIC"), 0);
}

TEST(LabTest, ServesOnlyWithTheGpusThereAre) {
  const Target& target = find_target("moe_vllm_env");
  Settings settings;
  settings.pp = 3;
  expect_refused("moe_vllm_env on nvlink: tp 8 * pp 3 = 24 GPUs do not divide the 8 of --ngpu",
                 [&] { (void)run(target, B, settings); });
  settings.ngpu = 48;
  EXPECT_EQ(run(target, B, settings).evaluation.world_size, 8);  // The lab's plan stays as it is
  settings.fabric = "nvl72";
  settings.ngpu = 0;
  EXPECT_EQ(run(target, B, settings).evaluation.world_size, 72);
}

TEST(LabTest, TellsPeopleWhatAPlanNeeds) {
  Settings settings;
  settings.spec = kDgx;
  const std::vector<std::pair<const Target*, Settings>> chosen = {{&find_target("gpt_gb200"), settings}};
  for (const Outcome& outcome : {run_targets(chosen), run_targets_by_our_model(chosen)}) {
    EXPECT_NE(render(outcome.report, Format::text).find("experts/GPU"), std::string::npos);
    EXPECT_EQ(render(outcome.report, Format::json).find("\"needs\""), std::string::npos);
    EXPECT_EQ(outcome.report.notes.front(),
              "moe_parallelism:gpt_gb200 brings its own spec: dgx_a100_175b does not hold for it");
  }
}

TEST(LabTest, ProgramsFindTheRatesThatPeopleSee) {
  Settings settings;
  settings.spec = kDgx;
  const Outcome outcome = run_targets({{&find_target("parallelism_breakdown"), settings}});
  const auto rates = [&](const std::string& table, const std::string& column) {
    std::vector<double> found;
    for (const Table& one : outcome.report.tables)
      for (std::size_t i = 0; one.key == table && i < one.columns.size(); ++i)
        if (one.columns[i].key == column)
          for (const auto& row : one.rows) found.push_back(std::get<double>(row[i]));
    return found;
  };
  EXPECT_EQ(rates("needs", "ep_rate").size(), 2U);
  EXPECT_EQ(rates("runs", "exchange_gb_per_s"), rates("needs", "ep_rate"));
  EXPECT_EQ(rates("needs", "nic_rate").size(), 2U);
  EXPECT_EQ(rates("runs", "network_gb_per_s"), rates("needs", "nic_rate"));
  for (const Table& one : outcome.report.tables)
    for (const auto& row : one.rows) EXPECT_EQ(row.size(), one.columns.size()) << one.key;
}

TEST(LabTest, ValidationComparesTheHalves) {
  Settings settings;
  settings.spec = kDgx;
  settings.validate = true;
  EXPECT_TRUE(run_targets({{&find_target("memory_budget"), settings}}).ok);
  // Here the "optimized" plan has fewer GPUs than the cluster, the baseline has all of them.
  EXPECT_EQ(evaluated(kIb, "gpt_gb200", B).world_size, 576);
  const Outcome outcome = run_targets({{&find_target("network_affinity"), settings}});
  const std::string json = render(outcome.report, Format::json);
  EXPECT_NE(json.find("\"cost_model\":\"lab\""), std::string::npos);
  EXPECT_NE(json.find("has 0.55 times the throughput"), std::string::npos) << json;
}

TEST(LabByOurModelTest, SaysWhatTheTwoDisagreeOnAndWhy) {
  Settings settings;
  settings.spec = kDgx;
  const Outcome outcome = run_targets_by_our_model({{&find_target("parallelism_breakdown"), settings}});
  const Table& runs = outcome.report.tables[0];
  ASSERT_EQ(runs.rows.size(), 2U);
  const auto column = [&](const Table& table, const std::string& key) {
    for (std::size_t i = 0; i < table.columns.size(); ++i)
      if (table.columns[i].key == key) return i;
    ADD_FAILURE() << "no column " << key;
    return std::size_t{0};
  };
  EXPECT_NEAR(std::get<double>(runs.rows[0][column(runs, "lab_step_ms")]), 10752.474, 1e-3);
  EXPECT_GT(std::get<double>(runs.rows[0][column(runs, "estimated_step_ms")]), 0);
  const Table& differences = outcome.report.tables[2];
  ASSERT_EQ(differences.key, "differences");
  EXPECT_GE(differences.rows.size(), 12U);
  for (const auto& row : differences.rows) {
    // Ours is what the run of the same role has, and the ratio belongs to it.
    const std::string item = std::get<std::string>(row[column(differences, "item")]);
    const bool baseline = std::get<std::string>(row[column(differences, "role")]) == "baseline";
    const double ours = std::get<double>(row[column(differences, "ours")]);
    const double lab = std::get<double>(row[column(differences, "lab")]);
    if (item != "memory_gib") {
      const std::string key = item == "step_ms" ? "estimated_step_ms" : item;
      EXPECT_EQ(std::get<double>(runs.rows[baseline ? 0 : 1][column(runs, key)]), ours) << item;
    }
    if (item == "bubble_ms" || item == "tp_time_ms" || item == "optimizer_ms") {
      EXPECT_EQ(lab, 0) << item;
    }
    if (lab > 0) {
      EXPECT_NEAR(std::get<double>(row[column(differences, "ratio")]) * lab, ours, 1e-9 * ours) << item;
    }
    EXPECT_FALSE(std::get<std::string>(row[column(differences, "why")]).empty());
  }
}

TEST(LabByOurModelTest, ItemsAddUpToTheStep) {
  for (const Target& target : targets()) {
    Settings settings;
    settings.spec = target.fixed_spec.empty() ? kIb : target.fixed_spec;
    const Outcome outcome = run_targets_by_our_model({{&target, settings}});
    const Table& runs = outcome.report.tables[0];
    for (const auto& row : runs.rows) {
      const auto value = [&](const std::string& key) {
        for (std::size_t i = 0; i < runs.columns.size(); ++i)
          if (runs.columns[i].key == key) return std::get<double>(row[i]);
        return 0.0;
      };
      bool feasible = true;
      for (std::size_t i = 0; i < runs.columns.size(); ++i)
        if (runs.columns[i].key == "feasible") feasible = std::get<bool>(row[i]);
      if (!feasible) continue;
      double sum = 0;
      for (const char* key : {"compute_ms", "bubble_ms", "tp_time_ms", "ep_time_ms", "pipeline_time_ms",
                              "dp_time_ms", "optimizer_ms"}) {
        EXPECT_GE(value(key), 0) << target.name << " " << key;
        sum += value(key);
      }
      EXPECT_NEAR(sum, value("estimated_step_ms"), 1e-6 * sum) << target.name;
    }
  }
}

TEST(LabByOurModelTest, GivesTheReasonOfWhatCannotBe) {
  // Three tensor-parallel ranks cannot share 80 heads of 128.
  const Target& target = find_target("gpt_gb200");
  Settings settings;
  settings.validate = true;
  const Outcome outcome = run_targets_by_our_model({{&target, settings}});
  EXPECT_FALSE(outcome.ok);
  bool found = false;
  for (const std::string& note : outcome.report.notes)
    found = found || note.find("optimized: not possible: tp 3 does not divide the 80 attention heads") !=
                         std::string::npos;
  EXPECT_TRUE(found);
}

}  // namespace
}  // namespace shunt::plan::lab

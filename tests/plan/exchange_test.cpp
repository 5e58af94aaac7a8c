#include <shunt/plan/exchange.h>

#include <algorithm>

#include <shunt/plan/environment.h>

#include "models.h"

namespace shunt::plan {
namespace {

Machine machine(const std::string& node, std::int64_t hosts) {
  return make_machine(find_node(node, "presets/hardware"), {hosts, 1, 0});
}

const ExchangeChoice* find(const ExchangePlan& plan, const std::string& library, const std::string& payload) {
  for (const ExchangeChoice& choice : plan.choices)
    if (choice.library == library && choice.dispatch_payload == payload) return &choice;
  return nullptr;
}

// Multiprocessors that DeepEP's README (V2) names for 8192 tokens, hidden 7168, top-8 of 256: 12 and 6 on H100 with
// ConnectX-7, 12 on B200, and on one B200 host 24 at least and 64 for the most.
TEST(DeepEpTest, TakesThePublishedMultiprocessors) {
  EXPECT_EQ(deepep_v2_sms(256, 8, 16, 2, 50, 405, 132, true), 12);
  EXPECT_EQ(deepep_v2_sms(256, 8, 32, 4, 50, 405, 132, true), 6);
  EXPECT_EQ(deepep_v2_sms(256, 8, 16, 2, 50, 810, 148, true), 12);
  EXPECT_EQ(deepep_v2_sms(256, 8, 8, 1, 50, 810, 148, true), 24);
  EXPECT_EQ(deepep_v2_sms(256, 8, 8, 1, 50, 810, 148, false), 64);
  EXPECT_EQ(deepep_v2_sms(256, 8, 1, 1, 50, 810, 148, true), 148);
  EXPECT_EQ(deepep_v2_qps(12, 2), 129);
  EXPECT_EQ(deepep_v2_qps(6, 4), 97);
  EXPECT_EQ(deepep_v2_qps(24, 1), 9);
  EXPECT_EQ(deepep_v2_qps(4, 1), 4);
  expect_refused("24 places do not divide 256 experts",
                 [] { (void)deepep_v2_sms(256, 8, 24, 1, 50, 810, 148, true); });
}

TEST(DeepEpTest, HasChunksForSomeNumbersOfRanks) {
  ASSERT_NE(deepep_chunks(144, false), nullptr);
  EXPECT_EQ(deepep_chunks(144, false)->near, 32);
  EXPECT_EQ(deepep_chunks(64, true)->far, 8);
  EXPECT_EQ(deepep_chunks(40, false), nullptr);
  // 10 channels of 8 peers and 256 tokens: 14336 bytes, 8 of metadata, 128 ids and weights, 128 scales; 5 counters each;
  // rounded up to 128.
  EXPECT_EQ(deepep_normal_bytes(8, 7168, 20),
            10 * 8 * 5 * 4 + 10 * 8 * 256 * (14336 + 8 + 128 * 12 + 128 * 4) + 64);
}

TEST(ExchangeTest, ChoosesBetweenLibrariesForDecode) {
  const ModelSpec model = preset("r1");
  const Machine m = machine("dgx-h100", 4);
  const Calibration calibration = read_calibration("presets/fits/measured.toml");
  const CostModel fits(calibration, "presets/hardware");
  ExchangeOptions options;
  options.ep = 32;
  const ExchangePlan plan = plan_exchange(model, m, options, &fits);
  for (std::size_t i = 1; i < plan.choices.size(); ++i)
    EXPECT_LE(plan.choices[i - 1].us(), plan.choices[i].us());
  const ExchangeChoice* low = find(plan, "deepep-ll", "fp8_block128");
  ASSERT_NE(low, nullptr);
  EXPECT_TRUE(low->fitted);
  EXPECT_TRUE(low->measured);
  EXPECT_EQ(low->fit_hardware, "h100_sxm");
  // An H100 multiplies in no fp4.
  EXPECT_EQ(find(plan, "nccl", "nvfp4"), nullptr);
  EXPECT_FALSE(low->deduplicated);
  EXPECT_EQ(low->qps, 8);
  EXPECT_NEAR(low->buffer_bytes / 1e9, 1.91, 0.01);  // Published for 256 experts, 128 tokens, hidden 7168
  // fp8 halves what bf16 sends, and a scale for each 128 elements.
  const ExchangeChoice* wide = find(plan, "deepep-ll", "bfloat16");
  ASSERT_NE(wide, nullptr);
  EXPECT_GT(wide->dispatch_us, low->dispatch_us);
  EXPECT_EQ(find(plan, "flashinfer", "bfloat16"), nullptr);
  EXPECT_NE(std::find(plan.refused.begin(), plan.refused.end(),
                      "flashinfer: ep 32 spans 4 NVLink domains; it serves one"),
            plan.refused.end());
}

TEST(ExchangeTest, HierarchySendsATokenOnceToADomain) {
  const ModelSpec model = preset("qwen3-235b");  // No groups: a token of top-8 may reach every domain
  ExchangeOptions options;
  options.ep = 32;
  options.tokens = 4096;
  options.libraries = {"shunt"};
  options.dispatch_payloads = {"bfloat16"};
  const ExchangePlan plan = plan_exchange(model, machine("dgx-h100", 4), options, nullptr);
  ASSERT_EQ(plan.choices.size(), 4U);
  double flat = 0;
  double aligned = 0;
  for (const ExchangeChoice& choice : plan.choices) {
    if (!choice.presum) continue;
    (choice.path == ExchangePath::flat ? flat : aligned) = choice.far_bytes;
  }
  // E[distinct domains of 4] is 3.629 for 8 of 128; of those three quarters are others, each way in bf16.
  EXPECT_NEAR(aligned / (4096 * 3.629 * 0.75 * 4 * 4096), 1, 1e-3);
  EXPECT_GT(flat, 1.5 * aligned);
  EXPECT_TRUE(plan.choices.front().presum);
}

TEST(ExchangeTest, OneRackNeedsNoNetwork) {
  ExchangeOptions options;
  options.ep = 64;
  const ExchangePlan plan = plan_exchange(preset("r1"), machine("gb200-nvl72", 18), options, nullptr);
  EXPECT_EQ(plan.domains, 1);
  for (const ExchangeChoice& choice : plan.choices) {
    EXPECT_EQ(choice.far_bytes, 0) << choice.library;
    EXPECT_EQ(choice.path, ExchangePath::flat);
  }
  EXPECT_NE(find(plan, "flashinfer", "nvfp4"), nullptr);
}

TEST(ExchangeTest, SaysWhereItsKernelsWereMeasured) {
  const Calibration calibration = read_calibration("presets/fits/measured.toml");
  const CostModel fits(calibration, "presets/hardware");
  ExchangeOptions options;
  options.libraries = {"flashinfer", "shunt"};
  const Report h100 = report_exchange(preset("r1"), machine("dgx-h100", 1), options, &fits);
  EXPECT_NE(h100.summary.back().find("of those with a fit, measured on gb200"), std::string::npos)
      << h100.summary.back();
  EXPECT_EQ(std::get<bool>(*h100.head.find("best_measured")), false);
  const Report rack = report_exchange(preset("r1"), machine("gb200-nvl72", 2), options, &fits);
  EXPECT_NE(rack.summary.back().find("of those that were measured on gb200"), std::string::npos)
      << rack.summary.back();
}

TEST(ExchangeTest, LeavesALibraryOutWithItsReason) {
  ExchangeOptions options;
  options.ep = 24;
  options.shunt_bytes = [](const ShuntExchange& e) {
    if (e.experts % e.ranks != 0) throw Error(Errc::invalid_argument, "ranks do not divide experts");
    return 1.0;
  };
  const ExchangePlan plan = plan_exchange(preset("r1"), machine("dgx-h100", 3), options, nullptr);
  EXPECT_FALSE(plan.choices.empty());
  EXPECT_NE(std::find(plan.refused.begin(), plan.refused.end(), "shunt: ranks do not divide experts"),
            plan.refused.end());
  // 8 groups on 3 domains have no closed form: said, not hidden.
  EXPECT_EQ(plan.notes.size(), 1U);
}

TEST(ExchangeTest, ReportNamesConfigurationAndEnvironment) {
  ExchangeOptions options;
  options.ep = 16;
  const Report report = report_exchange(preset("r1"), machine("dgx-h100", 2), options, nullptr);
  ASSERT_EQ(report.tables.size(), 3U);
  EXPECT_EQ(report.tables[1].key, "shunt_config");
  EXPECT_EQ(report.tables[2].key, "environment");
  EXPECT_EQ(std::get<std::string>(*report.head.find("fabric")), "ib");
  // The linter of plan env finds nothing in what it advises.
  std::vector<Variable> variables;
  for (const auto& row : report.tables[2].rows)
    variables.push_back({std::get<std::string>(row[1]), std::get<std::string>(row[2]), 0});
  EXPECT_TRUE(lint(variables, {}, "ib").empty());
}

TEST(ExchangeTest, Refuses) {
  const ModelSpec model = preset("r1");
  const Machine m = machine("dgx-h100", 2);
  const auto refused = [&](const std::string& message, auto change) {
    ExchangeOptions options;
    change(options);
    expect_refused(message, [&] { (void)plan_exchange(model, m, options, nullptr); });
  };
  refused("ep 17: expected a number in [2, 16], the GPUs of 2 hosts dgx-h100", [](auto& o) { o.ep = 17; });
  refused("ep 9 does not fill 2 scale-up domains of 8 GPUs evenly", [](auto& o) { o.ep = 9; });
  refused("tokens 0: expected a number in [1, 1048576]", [](auto& o) { o.tokens = 0; });
  refused("imbalance 0.5: expected a number in [1, 256]", [](auto& o) { o.imbalance = 0.5; });
  refused("SMs 200: expected a number in [0, 132]", [](auto& o) { o.sms = 200; });
  refused(
      "library \"deepep\" does not exist; did you mean \"deepep-ll\"? Allowed are deepep-normal, deepep-ll, "
      "deepep-v2, "
      "flashinfer, pplx, nccl, shunt",
      [](auto& o) { o.libraries = {"deepep"}; });
  refused(
      "no library fits: deepep-ll: 4096 tokens of a rank; its buffers are meant for fewer than 256, at most "
      "1024 here",
      [](auto& o) {
        o.libraries = {"deepep-ll"};
        o.dispatch_payloads = {"bfloat16"};
        o.tokens = 4096;
      });
  expect_refused("gpt has no experts", [&] { (void)plan_exchange(gpt(2, 64, 2), m, {}, nullptr); });
}

}  // namespace
}  // namespace shunt::plan

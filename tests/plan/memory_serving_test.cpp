#include <shunt/plan/memory.h>

#include <cmath>

#include "models.h"

namespace shunt::plan {
namespace {

MemoryOptions serving(std::int64_t tp, std::int64_t ep, std::int64_t dp, std::int64_t redundant) {
  MemoryOptions options;
  options.serving = true;
  options.layout.tp = tp;
  options.layout.ep = ep;
  options.layout.dp = dp;
  options.layout.redundant_experts = redundant;
  return options;
}

double all_weights(const StageMemory& stage) {
  return stage.weights + stage.expert_weights + stage.redundant_experts;
}

// DeepSeek-V3 in fp8; the figures leave out the norms of layers, 1.8 MB.
TEST(ServingMemoryTest, WeightsOfDeepSeekDeployments) {
  struct Deployment {
    std::int64_t ep, redundant;
    double bytes;
  };
  for (const Deployment& d : {Deployment{32, 32, 42'065'550'336.0}, Deployment{144, 32, 24'185'232'384.0},
                              Deployment{256, 0, 21'630'901'248.0}}) {
    MemoryOptions options = serving(1, d.ep, d.ep, d.redundant);
    options.inference.weights = options.inference.expert_weights = WeightFormat::fp8;
    const StageMemory stage = plan_memory(preset("r1"), options).worst_stage();
    EXPECT_NEAR(all_weights(stage), d.bytes, 2e6) << d.ep;
  }
}

TEST(ServingMemoryTest, OneRedundantExpertOfDeepSeek) {
  MemoryOptions options = serving(1, 32, 32, 32);
  options.inference.weights = options.inference.expert_weights = WeightFormat::fp8;
  EXPECT_NEAR(plan_memory(preset("r1"), options).worst_stage().redundant_experts / kGiB, 2.379, 0.0005);
}

TEST(ServingMemoryTest, CheckpointsOfGptOss) {
  for (const auto& [name, gib] :
       {std::pair<const char*, double>{"gpt-oss-120b", 60.77}, {"gpt-oss-20b", 12.82}}) {
    MemoryOptions options = serving(1, 1, 1, 0);
    options.inference.expert_weights = WeightFormat::mxfp4;
    EXPECT_NEAR(all_weights(plan_memory(preset(name), options).worst_stage()) / kGiB, gib, 0.005) << name;
  }
}

TEST(ServingMemoryTest, KvCacheFollowsHeadsRanksAndWindows) {
  const auto kv = [](const char* name, std::int64_t tp, std::int64_t length) {
    MemoryOptions options = serving(tp, 1, 1, 0);
    options.inference.max_sequences = 1;
    options.inference.max_length = length;
    return plan_memory(preset(name), options).worst_stage().kv_cache;
  };
  EXPECT_EQ(kv("r1", 1, 4096), 70272.0 * 4096);
  EXPECT_EQ(kv("r1", 8, 4096), 70272.0 * 4096) << "compressed vectors are on every rank";
  EXPECT_EQ(kv("qwen3-235b", 4, 4096), 192512.0 * 4096 / 4);
  EXPECT_EQ(kv("qwen3-235b", 8, 4096), 192512.0 * 4096 / 4) << "4 heads on 8 ranks";
  EXPECT_EQ(kv("gpt-oss-120b", 1, 4096), 73728.0 / 2 * (4096 + 128));
  EXPECT_EQ(kv("r1", 1, 4097), 70272.0 * 4112) << "whole blocks";
}

TEST(ServingMemoryTest, SaysHowManySequencesFit) {
  MemoryOptions options = serving(1, 32, 32, 32);
  options.inference.weights = options.inference.expert_weights = WeightFormat::fp8;
  options.capacity_bytes = std::int64_t{80} << 30;
  const MemoryPlan plan = plan_memory(preset("r1"), options);
  const StageMemory& stage = plan.worst_stage();
  const double left = 0.9 * 80 * kGiB - (stage.total() - stage.kv_cache);
  EXPECT_NEAR(plan.kv_budget, left, 16);
  EXPECT_EQ(plan.kv_sequences, static_cast<std::int64_t>(left / (70272.0 * 8192)));
  EXPECT_GT(plan.kv_sequences, 0);
}

TEST(AllToAllBytesTest, AgreesWithWhatLibrariesReserve) {
  EXPECT_NEAR(all_to_all_bytes(AllToAll::pplx, 256, 8, 7168, 128, 8, 1) / 1e9, 2.12, 0.005);
  EXPECT_NEAR(all_to_all_bytes(AllToAll::deepep_low_latency, 256, 8, 7168, 128, 8, 1) / 1e9, 1.91, 0.005);
  EXPECT_NEAR(all_to_all_bytes(AllToAll::deepep_low_latency, 288, 8, 7168, 128, 8, 1) / 1e9, 2.15, 0.005);
  // docs/architecture.md: 117 MB in, 117 MB out, 2 MB of tokens.
  EXPECT_NEAR(all_to_all_bytes(AllToAll::shunt, 256, 8, 7168, 128, 8, 1) / 1e6, 117.4 * 2 + 1.8, 1.0);
}

TEST(ServingMemoryTest, RefusesWhatDoesNotGoTogether) {
  const ModelSpec model = preset("qwen3-30b");
  const auto refused = [&](const MemoryOptions& options, const std::string& message) {
    expect_refused(message, [&] { (void)plan_memory(model, options); });
  };
  MemoryOptions o = serving(1, 1, 1, 0);
  o.inference.max_sequences = 0;
  refused(o, "max sequences 0: expected a number in [1, 1048576]");
  o = serving(1, 1, 1, 0);
  o.inference.utilization = 1.5;
  refused(o, "utilization 1.5: expected a number in [0.01, 1]");
  o = serving(1, 1, 1, 0);
  o.layout.cp = 2;
  refused(o, "cp 2 is for training; serving takes 1");
  o = serving(1, 1, 1, 0);
  o.inference.all_to_all = AllToAll::pplx;
  refused(o, "all-to-all pplx with ep 1: there is nothing to exchange");
  o = serving(1, 1, 1, 0);
  o.inference.mtp = true;
  refused(o, "qwen3-30b has no multi-token prediction modules");
}

}  // namespace
}  // namespace shunt::plan

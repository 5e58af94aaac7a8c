// The commands `shunt plan ...` as programs call them: JSON on stdout, exit status 2 with one sentence on stderr.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "process.h"

namespace shunt::cli {
namespace {

using Words = std::vector<std::string>;

nlohmann::json json_of(Words words) {
  words.insert(words.end(), {"--format", "json"});
  // From another directory, so that presets are not found by chance.
  const Ended ended = run_shunt(words, std::filesystem::temp_directory_path().string());
  EXPECT_EQ(ended.status, 0) << ended.err;
  return nlohmann::json::parse(ended.out);
}

void expect_usage_error(const Words& words, const std::string& message) {
  const Ended ended = run_shunt(words);
  EXPECT_EQ(ended.status, 2) << ended.out;
  EXPECT_EQ(ended.out, "");
  EXPECT_EQ(ended.err, message);
}

TEST(PlanTest, ParamsCountsPresetsExactly) {
  const nlohmann::json json = json_of({"plan", "params", "r1"});
  EXPECT_EQ(json.at("total_parameters"), 671026419200);
  EXPECT_EQ(json.at("kv_bytes_per_token"), 70272);
  EXPECT_EQ(json.at("parts").back().at("parameters"), 671026419200);
}

TEST(PlanTest, MemoryTellsWhetherTrainingFits) {
  const nlohmann::json json =
      json_of({"plan", "memory", "--model", "mixtral-8x7b", "--tp", "1", "--pp", "4", "--ep", "8", "--dp",
               "16", "--microbatches", "16", "--gpu", "h100", "--world", "64"});
  EXPECT_EQ(json.at("world"), 64);
  EXPECT_EQ(json.at("edp"), 2);
  EXPECT_EQ(json.at("megatron_weights_optimizer_bytes"), 20063312640);
  EXPECT_EQ(json.at("megatron_activation_bytes"), 17247109120);
  EXPECT_EQ(json.at("fits"), true);
  EXPECT_EQ(json.at("stages").size(), 4U);
}

TEST(PlanTest, MemoryTakesPublishedFormatsForServing) {
  const nlohmann::json json = json_of(
      {"plan", "memory", "--mode", "serving", "--model", "gpt-oss-120b", "--gpu", "h100", "--max-seqs", "8"});
  EXPECT_EQ(json.at("weights"), "bf16");
  EXPECT_EQ(json.at("expert_weights"), "mxfp4");
  EXPECT_GT(json.at("kv_sequences_that_fit"), 8);
}

TEST(PlanTest, RunRepeatsTheLab) {
  const nlohmann::json json = json_of({"plan", "run", "--targets", "moe_parallelism:network_affinity",
                                       "--spec", "dgx_a100_175b", "--cost-model", "lab"});
  EXPECT_EQ(json.at("runs").at(0).at("role"), "baseline");
  EXPECT_NEAR(json.at("runs").at(0).at("estimated_step_ms"), 2049.9935, 5.1e-5);
  EXPECT_NEAR(json.at("runs").at(1).at("throughput_tokens_per_s"), 701129.4, 0.051);
  EXPECT_EQ(run_shunt({"plan", "run", "--targets", "moe_parallelism:memory_budget", "--spec=dgx_a100_175b",
                       "--cost-model", "lab", "--validate"})
                .status,
            0);
  const Ended other =
      run_shunt({"plan", "run", "--targets", "all", "--cost-model", "lab", "--target-extra-arg",
                 "labs/moe_parallelism:moe_vllm_env=--fabric nvl72 --max-seqs 4096"});
  EXPECT_EQ(other.status, 0) << other.err;
  EXPECT_NE(other.out.find("mpirun -np 72"), std::string::npos);
}

TEST(PlanTest, RunGivesEachTargetItsOptions) {
  const nlohmann::json both =
      json_of({"plan", "run", "--scenario", "custom_gpt_oss_gb200", "--cost-model", "lab"});
  ASSERT_EQ(both.at("runs").size(), 4U);
  EXPECT_EQ(both.at("runs").at(2).at("fabric"), "ethernet");
  // Quotes that no shell took off, and a name that only one target has.
  const nlohmann::json quoted =
      json_of({"plan", "run", "--targets", "moe_parallelism:moe_vllm_env", "--cost-model", "lab",
               "--target-extra-arg", "moe_parallelism:moe_vllm_env=\"--fabric nvl72 --model 'a b'\""});
  EXPECT_EQ(quoted.at("runs").at(0).at("fabric"), "nvl72");
  EXPECT_NE(quoted.at("commands").dump().find("vllm serve a b "), std::string::npos);
  const nlohmann::json all =
      json_of({"plan", "run", "--targets", "all", "--cost-model", "lab", "--fabric", "nvl72"});
  EXPECT_EQ(all.at("notes").at(0),
            "fabric \"nvl72\" of alltoall_tuning: allowed are nvlink, ib, efa; it keeps its own");
  const auto refused = [](const Words& more, const std::string& message) {
    Words words = {"plan", "run", "--cost-model", "lab"};
    words.insert(words.end(), more.begin(), more.end());
    expect_usage_error(words, "shunt: " + message + "\n");
  };
  refused({"--targets", "gpt_gb200", "--tp", "4"},
          "--tp is for moe_vllm_env, not for the targets that were chosen");
  refused({"--targets", "moe_grouping", "--fabric", "ib"},
          "--fabric is for alltoall_tuning (nvlink, ib, efa), gpt_gb200 (ib, ethernet, both), moe_vllm_env "
          "(nvlink, nvl72), not for the targets that were chosen");
  refused({"--targets", "alltoall_tuning", "--fabric", "ethernet"},
          "fabric \"ethernet\" of alltoall_tuning: allowed are nvlink, ib, efa");
  refused({"--targets", "gpt_gb200", "--target-extra-arg", "gpt_gb200=--tp 4"},
          "--target-extra-arg gpt_gb200: --tp is for moe_vllm_env");
  refused(
      {"--targets", "gpt_gb200", "--target-extra-arg", "gpt_gb200=--fabrik ib"},
      "--target-extra-arg gpt_gb200: unknown option --fabrik; did you mean \"--fabric\"? Allowed are --spec, "
      "--fabric, --validate, --model, --ngpu, --tp, --pp, --max-len, --max-seqs, --gpu-util");
  refused({"--targets", "gpt_gb200", "--target-extra-arg", "gpt_gb200=--fabric"},
          "--target-extra-arg gpt_gb200: --fabric needs a value");
  refused({"--targets", "gpt_gb200", "--target-extra-arg", "memory_budget=--validate"},
          "--target-extra-arg memory_budget: this target is not among --targets");
}

TEST(PlanTest, OptionsThatWouldDoNothingAreRefused) {
  expect_usage_error({"plan", "memory", "--model", "r1", "--recompute-modules", "mlp"},
                     "shunt: --recompute-modules is for --recompute selective only\n");
  expect_usage_error({"plan", "memory", "--model", "r1", "--mode", "serving", "--dispatch-tokens", "64"},
                     "shunt: --dispatch-tokens is for --all-to-all deepep-ll, pplx and shunt only\n");
  const Words step = {"plan", "step", "--model", "mixtral-8x7b", "--dp", "8", "--ep", "8"};
  const auto refused = [&](const Words& more, const std::string& message) {
    Words words = step;
    words.insert(words.end(), more.begin(), more.end());
    expect_usage_error(words, "shunt: " + message + "\n");
  };
  refused({"--imbalance", "2", "--power-law", "1"}, "give one of --imbalance, --power-law and --loads");
  refused({"--tiers", "--fit", "x"}, "give --fit or --tiers, which uses no fit, not both");
  const std::string schedule = "which is not among those asked for\n";
  expect_usage_error({"plan", "schedule", "--schedule", "1f1b", "--chunks", "3"},
                     "shunt: --chunks is for the interleaved schedule, " + schedule);
  expect_usage_error({"plan", "memory", "--tp", "8"},
                     "shunt plan memory: --model is required (shunt plan memory --help says more)\n");
  const nlohmann::json path = json_of({"plan", "step", "--model", "mixtral-8x7b", "--dp", "8", "--ep", "8",
                                       "--phase", "decode", "--path", "rail_aligned"});
  EXPECT_NE(path.at("notes").dump().find("--path rail_aligned does not hold"), std::string::npos) << path;
  const nlohmann::json small =
      json_of({"plan", "step", "--model", "v2-lite", "--dp", "8", "--ep", "8", "--phase", "decode"});
  EXPECT_EQ(small.at("fits"), true);
  const nlohmann::json large =
      json_of({"plan", "step", "--model", "r1", "--dp", "8", "--ep", "8", "--phase", "decode"});
  EXPECT_EQ(large.at("fits"), false);
  EXPECT_TRUE(large.at("notes").at(0).get<std::string>().starts_with("it does not fit: ")) << large;
}

TEST(PlanTest, ModelsHaveTheirPublishersNames) {
  EXPECT_EQ(json_of({"plan", "params", "deepseek-ai/DeepSeek-V3"}).at("total_parameters"), 671026419200);
}

TEST(PlanTest, GroupingAndEnvAnswer) {
  EXPECT_EQ(json_of({"plan", "grouping", "--model", "r1", "--ranks", "32", "--nodes", "4",
                     "--redundant-experts", "32"})
                .at("best"),
            "latency_balanced");
  EXPECT_EQ(json_of({"plan", "env", "--fabric", "nvl72"}).at("gpus"), 72);
}

TEST(PlanTest, AffinityKnowsPathsAndPlacements) {
  const nlohmann::json path =
      json_of({"plan", "affinity", "--node", "dgx-h100", "--hosts", "2", "--from", "0", "--to", "9"});
  EXPECT_EQ(path.at("by"), "nvlink + rail");
  EXPECT_EQ(path.at("hops"), 6);
  const nlohmann::json matrix =
      json_of({"plan", "affinity", "--node", "gb200-nvl72", "--hosts", "36", "--ranks", "80"});
  EXPECT_EQ(matrix.at("matrix").at(0).at("79"), 6);
  const nlohmann::json placed = json_of({"plan", "affinity", "--node", "dgx-h100", "--hosts", "2", "--model",
                                         "v2-lite", "--tokens", "32", "--routing", "powerlaw:0.8"});
  // Without groups of experts locality has nothing to go by.
  EXPECT_EQ(placed.at("strategies").size(), 5U);
  EXPECT_EQ(placed.at("strategies").back().at("experts_of_places").size(), 64U);
}

TEST(PlanTest, AlltoallBreakdownSearchAndCompareAnswer) {
  const nlohmann::json exchange = json_of({"plan", "alltoall", "--model", "r1", "--ep", "16"});
  EXPECT_EQ(exchange.at("domains"), 2);
  int own = 0;
  for (const nlohmann::json& row : exchange.at("choices")) {
    if (row.at("library") != "shunt") continue;
    ++own;
    ASSERT_TRUE(row.at("buffer_bytes").is_number()) << row;
    EXPECT_GT(row.at("buffer_bytes"), 0);
  }
  EXPECT_EQ(own, 8);
  // Hosts that are given are kept, though the ranks would need others.
  EXPECT_EQ(json_of({"plan", "alltoall", "--model", "r1", "--ep", "8", "--hosts", "2"}).at("hosts"), 2);
  // Experts that the ranks do not divide rule out some libraries, not the question.
  EXPECT_FALSE(json_of({"plan", "alltoall", "--model", "r1", "--ep", "24"}).at("choices").empty());
  const Words plan = {"plan", "breakdown", "--model", "mixtral-8x7b",   "--hosts", "8", "--pp", "4", "--dp",
                      "16",   "--ep",      "8",       "--microbatches", "16"};
  const nlohmann::json breakdown = json_of(plan);
  EXPECT_EQ(breakdown.at("gpus"), 64);
  EXPECT_EQ(breakdown.at("ranks").size(), 64U);
  const nlohmann::json search = json_of({"plan", "search", "--phase", "decode", "--model", "v2-lite",
                                         "--hosts", "1", "--batches", "8,32", "--tiers"});
  EXPECT_GT(search.at("feasible"), 0);
  EXPECT_FALSE(search.at("front").empty());
  // A file and options of the same plan: every ratio is 1.
  const std::filesystem::path file =
      std::filesystem::temp_directory_path() / ("shunt-plan-test-" + std::to_string(getpid()) + ".json");
  Words to_json = plan;
  to_json.insert(to_json.end(), {"--format", "json"});
  std::ofstream(file) << run_shunt(to_json).out;
  const nlohmann::json compare =
      json_of({"plan", "compare", "--model", "mixtral-8x7b", "--hosts", "8", "--microbatches", "16", "--a",
               file.string(), "--b", "--pp 4 --dp 16 --ep 8"});
  std::filesystem::remove(file);
  ASSERT_FALSE(compare.at("metrics").empty());
  for (const nlohmann::json& row : compare.at("metrics")) EXPECT_EQ(row.at("better"), "same") << row;
}

TEST(PlanTest, NewCommandsRefuseWithOneSentence) {
  expect_usage_error({"plan", "breakdown", "--model", "mixtral-8x7b", "--hosts", "8", "--dp", "32"},
                     "shunt: tp 1 * cp 1 * dp 32 * pp 1 = 32 GPUs, but 8 hosts dgx-h100 have 64\n");
  expect_usage_error({"plan", "breakdown", "--model", "r1", "--dp", "8", "--sequences", "4"},
                     "shunt: --sequences is for decode, this is --phase training\n");
  expect_usage_error(
      {"plan", "breakdown", "--model", "r1", "--phase", "decod"},
      "shunt: --phase \"decod\": did you mean \"decode\"? Allowed are training, prefill, decode\n");
  expect_usage_error({"plan", "compare", "--model", "r1", "--a", "--tp 1 --pq 2", "--b", "--tp 1"},
                     "shunt: --a \"--tp 1 --pq 2\": --pq is not an option of --a; did you mean --pp?\n");
  for (const std::string option : {"--dispatch-payload", "--combine-payload"})
    expect_usage_error(
        {"plan", "alltoall", "--model", "r1", "--ep", "8", option, "fp9"},
        "shunt: " + option +
            ": payload \"fp9\" is not known; did you mean \"fp8\"? Allowed are bfloat16, half, float, int8, "
            "fp8, fp8_block128, mxfp8, nvfp4, mxfp4, none\n");
  expect_usage_error({"plan", "alltoall", "--model", "r1", "--hosts", "2", "--gpus", "16"},
                     "shunt: --hosts 2 and --gpus 16: give one of them\n");
  const Ended node = run_shunt({"plan", "affinity", "--node", "dgx-h10"});
  EXPECT_EQ(node.status, 2);
  EXPECT_NE(node.err.find("did you mean \"dgx-h100\"?"), std::string::npos) << node.err;
}

TEST(PlanTest, SearchRefusesWhatNoLayoutCanHave) {
  const auto refused = [](Words more, const std::string& message) {
    Words words = {"plan", "search", "--model", "mixtral-8x7b", "--tiers"};
    words.insert(words.end(), more.begin(), more.end());
    expect_usage_error(words, "shunt: " + message + "\n");
  };
  refused({"--phase", "prefill", "--prompt", "100", "--cached", "200"},
          "cached 200: expected less than the prompt of 100 tokens, and no negative number");
  refused({"--imbalance", "0.5"}, "imbalance 0.5: expected a number in [1, 8]");
  refused({"--zero", "7"}, "zero 7: expected a number in [0, 3]");
  refused({"--cp", "3"}, "cp 3: no layout of 8 GPUs has it");
}

TEST(PlanTest, CompareTakesAClusterOfEachPlan) {
  const nlohmann::json json = json_of({"plan", "compare", "--model", "mixtral-8x7b", "--hosts", "1",
                                       "--tiers", "--a", "--dp 8 --ep 8", "--b", "--gpus 16 --dp 16 --ep 8"});
  EXPECT_EQ(json.at("a_gpus"), 8);
  EXPECT_EQ(json.at("b_gpus"), 16);
}

TEST(PlanTest, RefusesWithOneSentence) {
  expect_usage_error(
      {"plan", "memory", "--model", "r1", "--ep", "24", "--dp", "24"},
      "shunt: ep 24 does not divide the 256 experts of r1; 8 redundant experts would make it 11 on "
      "each\n");
  expect_usage_error({"plan", "memory", "--model", "r1", "--dp", "8", "--world", "16"},
                     "shunt: --world 16: tp 1 * cp 1 * dp 8 * pp 1 is 8\n");
  expect_usage_error({"plan", "memory", "--model", "r1", "--max-len", "4096"},
                     "shunt: --max-len is for serving, this is --mode training\n");
  expect_usage_error({"plan", "memory", "--model", "r1", "--mode", "serving", "--zero", "1", "--dropout"},
                     "shunt: --zero, --dropout are for training, this is --mode serving\n");
  const Ended ended = run_shunt({"plan", "params", "r2"});
  EXPECT_EQ(ended.status, 2);
  EXPECT_NE(ended.err.find("did you mean \"r1\"?"), std::string::npos) << ended.err;
}

}  // namespace
}  // namespace shunt::cli

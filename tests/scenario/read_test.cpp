#include <shunt/scenario/read.h>

#include <gtest/gtest.h>

#include <shunt/core/error.h>
#include <shunt/scenario/plan.h>

#include "scenario/folder.h"

namespace shunt::scenario {
namespace {

/// A test in a scenario, line 2 on.
std::string one_test(const std::string& more) {
  return "name = \"s\"\n[[Tests]]\nid = \"a\"\nname = \"t\"\ndescription = \"d\"\n" + more;
}

Scenario parse(const std::string& text) {
  const Folder folder;
  return read_scenario(folder.write("s.toml", text));
}

std::string refusal(const std::string& text) {
  const Folder folder;
  try {
    const Scenario scenario = read_scenario(folder.write("s.toml", text));
    (void)expand(scenario, System{});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::io) << error.what();
    return std::string(error.what()).substr(folder.path().size() + 1);
  }
  return "accepted";
}

constexpr const char* kStandard = R"(
name = "deepep_standard"
description = "DeepEP MoE Benchmark - Standard Mode"
test_template_name = "DeepEPBenchmark"
[cmd_args]
docker_image_url = "registry.invalid/deepep:dp-benchmark"
mode = "standard"
tokens = 1024
num_experts = 256
num_topk = 8
hidden_size = 7168
data_type = "bfloat16"
num_warmups = 20
num_iterations = 50
)";

TEST(ReadScenarioTest, MergesATestWithWhatTheScenarioSays) {
  const Folder folder;
  folder.write("test/standard.toml", kStandard);
  const Scenario scenario = read_scenario(folder.write("test_scenario/s.toml", R"(
name = "deepep-benchmark"
[[Tests]]
id = "Tests.1"
test_name = "deepep_standard"
num_nodes = "2"
time_limit = "00:30:00"
  [Tests.cmd_args]
  tokens = "128"
  [Tests.extra_env_vars]
  NUM_SMS = "24"
)"));
  ASSERT_EQ(scenario.tests.size(), 1U);
  const TestEntry& entry = scenario.tests[0];
  EXPECT_EQ(entry.num_nodes, std::vector<std::int64_t>{2});
  EXPECT_EQ(entry.time_limit, std::chrono::minutes(30));
  EXPECT_EQ(entry.test.workload, Workload::deepep_benchmark);
  EXPECT_EQ(entry.test.whole("tokens", 0), 128) << "the scenario wins, and numbers may stand in quotes";
  EXPECT_EQ(entry.test.whole("num_experts", 0), 256);
  EXPECT_EQ(entry.test.whole("num_sms", 0), 24) << "a default";
  ASSERT_EQ(entry.test.env.size(), 1U);
}

TEST(ReadScenarioTest, TellsTheGenerationsOfDeepEp) {
  const auto workload = [](const std::string& keys) {
    return parse(one_test("test_template_name = \"DeepEP\"\n[Tests.cmd_args]\ndocker_image_url = \"i\"\n" +
                          keys))
        .tests[0]
        .test.workload;
  };
  EXPECT_EQ(workload("mode = \"low_latency\"\ntokens = 128\n"), Workload::deepep_benchmark);
  EXPECT_EQ(workload("subtest_name = \"test_ep\"\n"), Workload::deepep_scripts);
  EXPECT_EQ(workload("num_experts = 64\n"), Workload::deepep_scripts)
      << "both have this key; the newer one counts";
  const std::string mixed =
      refusal(one_test("test_template_name = \"DeepEP\"\n[Tests.cmd_args]\ntokens = 1\nnum_tokens = 1\n"));
  EXPECT_NE(mixed.find("num_tokens"), std::string::npos) << mixed;
}

TEST(ReadScenarioTest, SaysWhereAndWhatIsNearest) {
  const std::string benchmark = "test_template_name = \"DeepEPBenchmark\"\n[Tests.cmd_args]\n";
  EXPECT_EQ(refusal(one_test(benchmark + "toknes = 5\n")).substr(0, 60),
            "s.toml:8:1: unknown key \"cmd_args.toknes\" of DeepEPBenchmark");
  EXPECT_NE(refusal(one_test(benchmark + "toknes = 5\n")).find("did you mean \"tokens\""), std::string::npos);
  EXPECT_EQ(refusal(one_test(benchmark + "tokens = -5\n")).substr(0, 36),
            "s.toml:8:10: tokens: expected a whol");
  EXPECT_NE(refusal(one_test(benchmark + "num_topk = 999\nnum_experts = 4\n"))
                .find("s.toml:8:1: num_topk = 999 is more than num_experts = 4"),
            std::string::npos);
  EXPECT_NE(refusal(one_test(benchmark + "mode = \"standart\"\n")).find("did you mean \"standard\""),
            std::string::npos);
  EXPECT_NE(
      refusal(one_test("test_template_name = \"DeepEPBenchmrk\"\n")).find("did you mean \"DeepEPBenchmark\""),
      std::string::npos);
  EXPECT_NE(refusal("name = \"s\"\nTest = 1\n").find("did you mean \"Tests\""), std::string::npos);
  EXPECT_NE(
      refusal("name = \"s\"\n[[Tests]]\nid = \"a\"\ntest_name = \"nothing\"\n").find("no test \"nothing\""),
      std::string::npos);
  EXPECT_NE(refusal("name = \"s\nx").find("s.toml:1:10: not valid TOML"), std::string::npos)
      << refusal("name = \"s\nx");
  EXPECT_NE(refusal("name = \"../up\"\n[[Tests]]\nid = \"a\"\n").find("no slash"), std::string::npos);
  EXPECT_NE(refusal(one_test(benchmark + "use_ue8m0 = true\n")).find("round_scale"), std::string::npos);
  EXPECT_NE(refusal(one_test("test_template_name = \"Command\"\ntime_limit = "
                             "\"10:00\"\n[Tests.cmd_args]\ncommand = \"true\"\n"))
                .find("Slurm reads 00:10:00"),
            std::string::npos);
}

TEST(ReadScenarioTest, RefusesSecrets) {
  const std::string command = "test_template_name = \"Command\"\n[Tests.cmd_args]\ncommand = \"true\"\n";
  EXPECT_NE(refusal(one_test(command + "[Tests.extra_env_vars]\nHF_TOKEN = \"hunter2\"\n"))
                .find("looks like a secret"),
            std::string::npos);
  EXPECT_EQ(refusal(one_test(command + "[Tests.extra_env_vars]\nHF_TOKEN = \"hunter2\"\n")).find("hunter2"),
            std::string::npos);
  EXPECT_NE(refusal(one_test(command + "docker_image_url = \"https://me:hunter2@registry.invalid/i\"\n"))
                .find("password"),
            std::string::npos);
  EXPECT_EQ(refusal(one_test(command + "[Tests.extra_env_vars]\nNUM_OF_TOKENS = \"1\"\n")), "accepted");
  EXPECT_NE(refusal(one_test(command + "[Tests.extra_env_vars]\nA = \"x\\ny\"\n")).find("line break"),
            std::string::npos);
}

std::string chain(const std::vector<std::pair<std::string, std::string>>& edges,
                  const std::string& type = "start_post_comp") {
  std::string text = "name = \"s\"\n";
  for (const char* id : {"a", "b", "c"}) {
    text += std::string("[[Tests]]\nid = \"") + id +
            "\"\nname = \"t\"\ntest_template_name = \"Command\"\ncmd_args.command = \"true\"\n";
    for (const auto& [from, to] : edges)
      if (from == id) text += "[[Tests.dependencies]]\ntype = \"" + type + "\"\nid = \"" + to + "\"\n";
  }
  return text;
}

TEST(ReadScenarioTest, DependenciesAreAGraphWithoutCircles) {
  const Scenario scenario = parse(chain({{"c", "a"}, {"c", "b"}}));
  EXPECT_EQ(scenario.tests[2].dependencies.size(), 2U) << "several of one type";
  EXPECT_NE(refusal(chain({{"a", "b"}, {"b", "c"}, {"c", "a"}})).find("circle: a -> b -> c -> a"),
            std::string::npos);
  EXPECT_NE(refusal(chain({{"a", "b"}, {"b", "a"}}, "start_post_init")).find("circle"), std::string::npos);
  EXPECT_EQ(refusal(chain({{"a", "b"}, {"b", "a"}}, "end_post_comp")), "accepted");
  EXPECT_NE(refusal(chain({{"a", "a"}})).find("depends on itself"), std::string::npos);
  EXPECT_NE(refusal(chain({{"a", "bb"}})).find("did you mean"), std::string::npos);
  EXPECT_NE(refusal(chain({{"a", "b"}}, "start_post")).find("did you mean \"start_post_comp\""),
            std::string::npos);
}

TEST(ExpandTest, MakesEveryPointOfASweepInEveryIteration) {
  const Scenario scenario =
      parse(one_test("test_template_name = \"MoEBenchmark\"\niterations = 2\nnum_nodes = [1, 2]\n"
                     "[Tests.cmd_args]\ntokens = [64, 128]\ndeepep_versions = [\"legacy\", \"elastic\"]\n"
                     "[Tests.extra_env_vars]\nNUM_SMS = [\"12\", \"24\"]\n"));
  const std::vector<Case> cases = expand(scenario, System{});
  ASSERT_EQ(cases.size(), 16U) << "a list that is one value is no axis";
  EXPECT_EQ(cases[0].folder(), "a/0/1");
  EXPECT_EQ(cases[15].folder(), "a/1/8");
  EXPECT_EQ(cases[1].num_nodes, 2) << "the number of nodes changes fastest";
  EXPECT_EQ(to_text(cases[2].definition.env[0].values[0]), "24");
  EXPECT_EQ(cases[4].definition.whole("tokens", 0), 128);
  EXPECT_EQ(cases[4].point.size(), 3U);
  EXPECT_EQ(cases[4].definition.find("deepep_versions")->values.size(), 2U);
}

TEST(ExpandTest, ExpertsAreSharedOutAmongRanks) {
  const std::string text = one_test(
      "test_template_name = \"DeepEPBenchmark\"\nranks_per_node = 8\nnum_nodes = "
      "3\n[Tests.cmd_args]\nnum_experts = 256\n");
  EXPECT_NE(refusal(text).find("num_experts = 256 of test \"a\" cannot be shared out evenly among 24 ranks"),
            std::string::npos)
      << refusal(text);
}

TEST(ReadScenarioTest, ReadsExpectations) {
  const Scenario scenario =
      parse(one_test("test_template_name = \"Command\"\n[Tests.cmd_args]\nargv = "
                     "[\"true\"]\n[Tests.expect]\nfailure = true\n"
                     "bus_bw_avg = [{ min = 1.5, where = { operation = \"dispatch\" } }, { reference = 2, "
                     "tolerance_percent = 10 }]\n"));
  const TestDefinition& test = scenario.tests[0].test;
  EXPECT_TRUE(test.expect_failure);
  ASSERT_EQ(test.expect.size(), 2U);
  EXPECT_EQ(test.expect[0].where.size(), 1U);
  EXPECT_EQ(test.expect[1].reference, 2.0);
  const std::string base =
      "test_template_name = \"Command\"\n[Tests.cmd_args]\nargv = [\"true\"]\n[Tests.expect]\n";
  EXPECT_NE(refusal(one_test(base + "x = { mn = 1 }\n")).find("did you mean \"min\""), std::string::npos);
  EXPECT_NE(refusal(one_test(base + "x = { min = 2, max = 1 }\n")).find("nothing could pass"),
            std::string::npos);
  EXPECT_NE(refusal(one_test(base + "x = { reference = 2 }\n")).find("go together"), std::string::npos);
}

TEST(ReadSystemTest, ReadsCloudAisExample) {
  const Folder folder;
  const System system = read_system(folder.write("system.toml", R"(
name = "example-cluster"
scheduler = "slurm"
install_path = "./install_dir"
output_path = "/results"
default_partition = "partition_1"
mpi = "pmix"
gpus_per_node = 8
ntasks_per_node = 8
[[partitions]]
name = "partition_1"
  [[partitions.groups]]
  name = "group_1"
  nodes = ["node-[001-025]"]
[[partitions]]
name = "partition_2"
[data_repository]
endpoint = "MY_ENDPOINT"
[global_env_vars]
NCCL_IB_GID_INDEX = "3"
)"));
  EXPECT_EQ(system.install_path, folder.path() + "/install_dir") << "paths count from the file's folder";
  EXPECT_EQ(system.output_path, "/results");
  EXPECT_EQ(system.partitions[0].groups[0].nodes.size(), 25U);
  EXPECT_EQ(system.env.size(), 1U);
  EXPECT_EQ(system.monitor_interval, 60);
  const auto refused = [&folder](const std::string& more) {
    try {
      (void)read_system(folder.write(
          "bad.toml", "name = \"x\"\nscheduler = \"slurm\"\ndefault_partition = \"p\"\n" + more));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refused(""), "accepted");
  EXPECT_NE(
      refused("acount = \"x\"\n").find("bad.toml:4:1: unknown key \"acount\"; did you mean \"account\""),
      std::string::npos);
  EXPECT_NE(refused("account = \"a; reboot\"\n").find("sign of the shell"), std::string::npos);
  EXPECT_NE(refused("extra_transient_status_errors = [\" \"]\n").find("blank"), std::string::npos);
  EXPECT_NE(refused("[global_env_vars]\nAPI_KEY = \"1\"\n").find("secret"), std::string::npos);
}

TEST(ReadScenarioTest, ReadsTheScenariosThatComeWithShunt) {
  for (const auto& file : std::filesystem::directory_iterator("presets/scenarios"))
    EXPECT_FALSE(expand(read_scenario(file.path().string()), System{}).empty()) << file.path();
}

TEST(ListTestsTest, RefusesANameThatIsThereTwice) {
  const Folder folder;
  folder.write("a.toml", kStandard);
  folder.write("b.toml", kStandard);
  try {
    (void)list_tests(folder.path());
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("a.toml"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("b.toml"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace shunt::scenario

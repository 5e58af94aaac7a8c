#include <shunt/scenario/run.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <sstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <shunt/core/error.h>
#include <shunt/scenario/read.h>

#include "scenario/folder.h"

namespace shunt::scenario {
namespace {

namespace fs = std::filesystem;
using Lines = std::vector<std::string>;

std::string test(const std::string& id, const std::string& command, const std::string& more = "",
                 const std::string& results = "") {
  return "[[Tests]]\nid = \"" + id + "\"\nname = \"t_" + id + "\"\ntest_template_name = \"Command\"\n" +
         more + "[Tests.cmd_args]\ncommand = '''" + command + "'''\n" +
         (results.empty() ? "" : "results = \"" + results + "\"\n");
}

const std::string kNeeds = "[[Tests.dependencies]]\ntype = \"start_post_comp\"\nid = ";

class RunScenarioTest : public testing::Test {
 protected:
  CampaignEnd run(const std::string& tests, RunOptions options = {}) {
    const Scenario scenario = read_scenario(folder_.write("s.toml", "name = \"campaign\"\n" + tests));
    options.shunt = SHUNT_COMMAND;
    options.output_dir = folder_.path() + "/results";
    if (!options.say) options.say = [this](const std::string& line) { said_.push_back(line); };
    return run_scenario(scenario, System{}, options);
  }
  static const Finished& of(const CampaignEnd& end, const std::string& label) {
    for (const Finished& one : end.summary.runs)
      if (one.label == label) return one;
    throw std::runtime_error("no run " + label);
  }
  static Status status(const CampaignEnd& end, const std::string& label) { return of(end, label).status; }

  Folder folder_;
  Lines said_;
};

TEST_F(RunScenarioTest, RunsSkipsSweepsAndJudges) {
  const std::string tests =
      test("good",
           "echo '[{\"bw\": 3.5, \"op\": \"dispatch\"}, {\"bw\": 1, \"op\": \"combine\"}]' > out.json; echo "
           "said; echo wrong >&2",
           "expect.bw = [{ min = 3, where = { op = \"dispatch\" } }, { reference = 1, tolerance_percent = "
           "10, where = { op = "
           "\"combine\" } }]\n",
           "out.json") +
      test("bad", "exit 3") + test("after_bad", "true", kNeeds + "\"bad\"\n") +
      test("expected", "exit 4", "expect.failure = true\n") +
      test("slow_number", "echo '{\"bw\": 1}' > out.json", "expect.bw = { min = 2 }\n", "out.json") +
      "[[Tests]]\nid = \"sweep\"\nname = \"t\"\ntest_template_name = \"Command\"\niterations = "
      "2\n[Tests.cmd_args]\ncommand = \"echo "
      "$LEVEL\"\n[Tests.extra_env_vars]\nLEVEL = [\"1\", \"2\"]\n" +
      kNeeds + "\"good\"\n";
  const CampaignEnd end = run(tests);
  EXPECT_EQ(end.signal, 0);
  EXPECT_FALSE(end.summary.passed());
  ASSERT_EQ(end.summary.runs.size(), 9U);
  EXPECT_EQ(status(end, "good"), Status::passed) << of(end, "good").reason;
  EXPECT_EQ(status(end, "bad"), Status::failed);
  EXPECT_EQ(of(end, "bad").exit_code, 3);
  EXPECT_EQ(status(end, "after_bad"), Status::skipped);
  EXPECT_NE(of(end, "after_bad").reason.find("\"bad\""), std::string::npos);
  EXPECT_EQ(status(end, "expected"), Status::passed);
  EXPECT_EQ(status(end, "slow_number"), Status::failed);
  EXPECT_EQ(of(end, "slow_number").reason, "bw is 1, expected at least 2");
  for (const char* label : {"sweep.1", "sweep.2", "sweep#1.1", "sweep#1.2"})
    EXPECT_EQ(status(end, label), Status::passed) << label;
  EXPECT_EQ(read_file(end.folder + "/sweep/1/2/stdout.txt"), "2\n");
  EXPECT_EQ(read_file(end.folder + "/good/0/stdout.txt"), "said\n");
  EXPECT_EQ(read_file(end.folder + "/good/0/stderr.txt"), "wrong\n");
  for (const char* name :
       {"env_vars.sh", "test-run.toml", "case.json", "metadata", "cloudai_t_good_report.csv"})
    EXPECT_TRUE(fs::exists(end.folder + "/good/0/" + name)) << name;
  const auto summary = nlohmann::json::parse(read_file(end.folder + "/summary.json"));
  EXPECT_EQ(summary["counts"]["passed"], 6);
  EXPECT_EQ(summary["status"], "failed");
  EXPECT_EQ(summary["tests"][0]["rows"][0]["bw"], 3.5);
  EXPECT_NE(
      read_file(end.folder + "/junit.xml").find("tests=\"9\" failures=\"2\" errors=\"0\" skipped=\"1\""),
      std::string::npos);
  EXPECT_NE(read_file(end.folder + "/results.csv").find("good,passed,3.5,dispatch,good/0\n"),
            std::string::npos)
      << read_file(end.folder + "/results.csv");
  EXPECT_NE(read_file(end.folder + "/campaign.html").find("it depends on &quot;bad&quot;"),
            std::string::npos);
}

TEST_F(RunScenarioTest, IsInterruptedAndResumed) {
  const std::string tests = test("first", "echo once >> ../../../count") +
                            test("second", "[ -e ../../../go ] || sleep 60") + test("third", "true");
  RunOptions options;
  options.say = [](const std::string& line) {
    if (line == "second: started") raise(SIGTERM);
  };
  const CampaignEnd broken = run(tests, options);
  EXPECT_EQ(broken.signal, SIGTERM);
  EXPECT_EQ(status(broken, "first"), Status::passed);
  EXPECT_EQ(status(broken, "second"), Status::interrupted);
  EXPECT_EQ(status(broken, "third"), Status::not_run);
  folder_.write("results/go", "");
  RunOptions again;
  again.resume = broken.folder;
  const CampaignEnd end = run(tests, again);
  EXPECT_EQ(end.folder, broken.folder);
  EXPECT_TRUE(end.summary.passed());
  EXPECT_EQ(said_.front(), "first: passed before");
  EXPECT_EQ(read_file(folder_.path() + "/results/count"), "once\n") << "what passed is not repeated";
}

TEST_F(RunScenarioTest, ATestThatHasChangedIsRunAgain) {
  const CampaignEnd first = run(test("a", "echo 1"));
  RunOptions again;
  again.resume = first.folder;
  said_.clear();
  EXPECT_TRUE(run(test("a", "echo 2"), again).summary.passed());
  EXPECT_EQ(said_.front(), "a: started");
  EXPECT_EQ(read_file(first.folder + "/a/0/stdout.txt"), "2\n");
}

TEST_F(RunScenarioTest, TimeLimitEndsTheWholeGroup) {
  // Long enough for the shell to have begun, on however busy a machine.
  const CampaignEnd end = run(test("a", "sleep 300 & echo $! > child; sleep 300", "time_limit = \"5s\"\n"));
  EXPECT_EQ(status(end, "a"), Status::failed);
  EXPECT_EQ(of(end, "a").reason, "its time limit of 00:00:05 has passed");
  const int child = std::stoi(read_file(end.folder + "/a/0/child"));
  // It may still be a corpse that nobody has collected.
  const std::string stat = read_file("/proc/" + std::to_string(child) + "/stat");
  EXPECT_TRUE(stat.empty() || stat.find(") Z ") != std::string::npos) << stat;
}

TEST_F(RunScenarioTest, AFailedCampaignIsPackedOnRequest) {
  RunOptions options;
  options.archive_failed = true;
  EXPECT_FALSE(fs::exists(run(test("a", "true"), options).folder + ".tgz"));
  EXPECT_TRUE(fs::exists(run(test("a", "false"), options).folder + ".tgz"));
}

TEST_F(RunScenarioTest, OneTestMayEndWithAnother) {
  const CampaignEnd end = run(test("server", "touch ../../up; exec sleep 300",
                                   "[[Tests.dependencies]]\ntype = \"end_post_comp\"\nid = \"client\"\n") +
                              test("client", "while [ ! -e ../../up ]; do sleep 0.05; done",
                                   "[[Tests.dependencies]]\ntype = \"start_post_init\"\nid = \"server\"\n"));
  EXPECT_TRUE(end.summary.passed()) << of(end, "server").reason << of(end, "client").reason;
  EXPECT_EQ(of(end, "server").reason, "ended since \"client\" completed");
}

TEST_F(RunScenarioTest, AMissingProgramFailsItsTestOnly) {
  const CampaignEnd end =
      run("[[Tests]]\nid = \"a\"\nname = \"t\"\ntest_template_name = \"Command\"\ncmd_args.argv = "
          "[\"shunt-no-such-program\"]\n" +
          test("b", "true"));
  EXPECT_EQ(status(end, "a"), Status::failed);
  EXPECT_NE(of(end, "a").reason.find("shunt-no-such-program"), std::string::npos);
  EXPECT_EQ(status(end, "b"), Status::passed);
}

TEST_F(RunScenarioTest, SecretsOfTheEnvironmentStayThere) {
  ASSERT_EQ(setenv("SHUNT_TEST_TOKEN", "planted-credential", 1), 0);
  const CampaignEnd end =
      run(test("a",
               "echo $SHUNT_TEST_TOKEN; echo \"[{\\\"x\\\": \\\"$SHUNT_TEST_TOKEN\\\"}]\" > out.json; env "
               ">&2; test -n \"$SHUNT_TEST_TOKEN\""));
  ASSERT_EQ(unsetenv("SHUNT_TEST_TOKEN"), 0);
  EXPECT_TRUE(end.summary.passed()) << "the program gets it: " << of(end, "a").reason;
  for (const auto& entry : fs::recursive_directory_iterator(end.folder)) {
    // What the program itself has written is its own.
    if (!entry.is_regular_file() || entry.path().filename() == "out.json") continue;
    EXPECT_EQ(read_file(entry.path().string()).find("planted-credential"), std::string::npos) << entry.path();
  }
  for (const std::string& line : said_) EXPECT_EQ(line.find("planted-credential"), std::string::npos) << line;
}

TEST_F(RunScenarioTest, CloudAisBenchmarkIsRunByOurs) {
  const std::string keys =
      "num_experts = 16\nnum_topk = 2\nhidden_size = 256\ntokens = 4\nnum_warmups = 1\nnum_iterations = 5\n"
      "[Tests.extra_cmd_args]\n\"--max-seconds\" = \"2\"\n\"--rounds\" = \"1\"\n";
  const CampaignEnd end =
      run("[[Tests]]\nid = \"standard\"\nname = \"deepep_standard\"\ntest_template_name = "
          "\"DeepEPBenchmark\"\n[Tests.cmd_args]\ndocker_image_url = \"none\"\n" +
          keys +
          "[[Tests]]\nid = \"ll\"\nname = \"deepep_ll\"\ntest_template_name = \"MoEBenchmark\"\n"
          "expect.time_s = { min = 0 }\n[Tests.cmd_args]\nmode = \"low_latency\"\ndata_type = \"fp8\"\n" +
          keys);
  for (const auto& [id, mode] : {std::pair{"standard", "standard"}, {"ll", "low_latency"}}) {
    ASSERT_EQ(status(end, id), Status::passed)
        << of(end, id).reason << read_file(end.folder + "/" + id + "/0/stderr.txt");
    EXPECT_TRUE(fs::exists(end.folder + "/" + id + "/0/config.yaml"));
    std::string results;
    for (const auto& entry : fs::directory_iterator(end.folder + "/" + id + "/0"))
      if (entry.path().filename().string().starts_with("benchmark_2_ranks_") &&
          entry.path().filename().string().ends_with(mode))
        results = entry.path().string() + "/results.json";
    const auto rows = nlohmann::json::parse(read_file(results));
    const std::string beside = results.substr(0, results.rfind('/'));
    const std::string tokens = read_file(beside + "/token_matrix.txt");
    EXPECT_EQ(std::count(tokens.begin(), tokens.end(), '\n'), 8) << "4 tokens of 2 ranks";
    std::istringstream cells(read_file(beside + "/nccl_matrix.txt"));
    std::int64_t bytes = 0;
    for (std::int64_t cell = 0; cells >> cell;) bytes += cell;
    const std::int64_t row = std::string(id) == "ll" ? 256 + 8 : 512;
    EXPECT_EQ(bytes, 8 * 2 * row) << "each token goes to two experts";
    EXPECT_NE(read_file(beside + "/ucc_matrix.txt").find("team_size = 2\n"), std::string::npos);
    EXPECT_TRUE(fs::exists(beside + "/token_matrix_kb.txt"));
    ASSERT_GE(rows.size(), 2U);
    EXPECT_EQ(rows[0]["backend"], std::string(id) == "ll" ? "shunt_ll" : "shunt");
    EXPECT_EQ(rows[0]["num_tokens"], 4);
    EXPECT_GT(rows[0]["time_s"], 0);
    EXPECT_EQ(rows[0]["time_s"], rows[0]["deepep_time"]);
    EXPECT_TRUE(rows[0]["simple_rdma_bw"].is_null()) << "there is no network on one node";
    EXPECT_TRUE(rows[0]["simple_nvl_bw"].is_null());
  }
}

TEST_F(RunScenarioTest, ADryRunNeedsNoSlurm) {
  const Scenario scenario =
      read_scenario(folder_.write("s.toml", "name = \"campaign\"\n" + test("a", "true") + test("b", "true")));
  System system;
  system.scheduler = Scheduler::slurm;
  system.default_partition = "p";
  system.install_path = folder_.path() + "/install";
  RunOptions options;
  options.shunt = "shunt";
  options.output_dir = folder_.path() + "/dry";
  const std::string folder = dry_run(scenario, system, options);
  for (const char* id : {"a", "b"})
    for (const char* name :
         {"cloudai_sbatch_script.sh", "env_vars.sh", "test-run.toml", "slurm-job.toml", "metadata"})
      EXPECT_TRUE(fs::exists(folder + "/" + id + "/0/" + name)) << id << name;
}

TEST(JobStateTest, IsReadFromSteps) {
  for (const char* state : {"COMPLETED", "FAILED", "CANCELLED", "CANCELLED+", "CANCELLED by 0", "TIMEOUT",
                            "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"})
    EXPECT_TRUE(is_terminal_state(job_state(state))) << state;
  for (const char* state :
       {"RUNNING", "PENDING", "COMPLETED RUNNING", "RUNNING COMPLETED", "CONFIGURING", "REQUEUED",
        "SUSPENDED", "", "   RUNNING \n   RUNNING \n COMPLETED \n    FAILED \n   RUNNING \n"})
    EXPECT_FALSE(is_terminal_state(job_state(state))) << state;
  EXPECT_EQ(job_state("RUNNING COMPLETED"), "RUNNING");
  EXPECT_EQ(job_state("COMPLETED COMPLETED"), "COMPLETED");
  EXPECT_EQ(job_state("FAILED COMPLETED"), "FAILED");
}

}  // namespace
}  // namespace shunt::scenario

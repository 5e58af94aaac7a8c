#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include <network_namespace.h>
#include <routing/temp_dir.h>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

using testing_support::enter_network_namespace;

/// Why `method` cannot run here, or empty.
std::string missing(const std::string& method) {
  if (!enter_network_namespace().empty()) return enter_network_namespace();
  for (const MethodSpec& spec : alltoall_methods())
    if (spec.name == method) return spec.unavailable.empty() && spec.look ? spec.look() : spec.unavailable;
  return "no such method";
}

AllToAllBenchOptions small_options(const std::string& peer) {
  AllToAllBenchOptions options;
  options.num_experts = 7;
  options.top_k = 3;
  options.hidden = 130;
  options.tokens = {6};
  options.methods = {"shunt", peer};
  options.rounds = 1;
  options.iterations = 2;
  // Many times what it takes: a late start of Python must not cost the first round.
  options.max_seconds = 60;
  options.deadline_ms = 60'000;
  options.write_files = false;
  return options;
}

PointResult run_one(const AllToAllBenchOptions& options) {
  AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
  EXPECT_EQ(report.points.size(), 1U);
  return report.points.at(0);
}

const MethodResult& result_of(const PointResult& result, const std::string& method) {
  return *std::find_if(result.methods.begin(), result.methods.end(),
                       [&](const MethodResult& one) { return one.name == method; });
}

using Change = std::function<void(AllToAllBenchOptions&)>;

/// Runs every shape; all must be right, and where `bits` is set equal to shunt's to the last bit.
void expect_right(const std::string& peer, const std::vector<Change>& shapes, bool bits) {
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    SCOPED_TRACE(i);
    AllToAllBenchOptions options = small_options(peer);
    shapes[i](options);
    const PointResult result = run_one(options);
    const std::string expected = result_of(result, "shunt").result_hash;
    for (const MethodResult& method : result.methods) {
      EXPECT_EQ(method.status, "ok") << method.name << " " << method.variant << ": " << method.reason;
      EXPECT_TRUE(method.correct) << method.name;
      // Inner phases of `shunt` come from a run of their own, which a busy machine may place elsewhere.
      const bool exchange_anywhere =
          std::any_of(method.phases.begin(), method.phases.end(),
                      [](const PhaseResult& phase) { return phase.phase == "exchange"; });
      EXPECT_TRUE(method.name == "shunt" ? exchange_anywhere
                                         : method.find(result.main_placement(), "exchange") != nullptr)
          << method.name;
      EXPECT_GT(method.cold_us[0], 0) << method.name;
      EXPECT_GT(method.cold_us[2], 0) << method.name;
      if (bits) {
        EXPECT_EQ(method.result_hash, expected) << method.name << " " << method.variant;
      }
    }
  }
}

TEST(PeersTest, GlooDeliversTheSameBits) {
  if (const std::string why = missing("simd/gloo"); !why.empty()) GTEST_SKIP() << why;
  expect_right("simd/gloo",
               {
                   [](auto& o) { o.ranks = 1; },
                   [](auto& o) { o.ranks = 2, o.in_dtype = DType::f8e4m3; },
                   [](auto& o) { o.ranks = 4, o.dp_size = 2, o.routings = {"uniform+mask:0.3+uneven"}; },
                   [](auto& o) { o.ranks = 8, o.tokens = {33}, o.routings = {"one"}; },
                   [](auto& o) { o.ranks = 3, o.mode = RankMode::threads; },
               },
               true);
}

TEST(PeersTest, TorchDeliversWhatTheOracleAsksFor) {
  if (const std::string why = missing("torch"); !why.empty()) GTEST_SKIP() << why;
  expect_right("torch",
               {
                   [](auto& o) { o.ranks = 1, o.in_dtype = DType::f32, o.out_dtype = DType::f32; },
                   [](auto& o) { o.ranks = 2, o.in_dtype = DType::f8e4m3; },
                   [](auto& o) { o.ranks = 4, o.dp_size = 2, o.routings = {"uniform+mask:0.3+uneven"}; },
                   [](auto& o) { o.ranks = 3, o.num_experts = 2, o.top_k = 2, o.in_dtype = DType::f8e5m2; },
                   [](auto& o) { o.ranks = 2, o.in_dtype = DType::f16, o.routings = {"one+mask:1"}; },
                   [](auto& o) { o.ranks = 2, o.mode = RankMode::threads, o.in_dtype = DType::f32; },
               },
               false);
}

TEST(PeersTest, OpensNoSocketUnlessAsked) {
  AllToAllBenchOptions options;
  const auto reason_of = [&](const char* name) {
    for (const MethodSpec& spec : select_methods(options))
      if (spec.name == name) return spec.unavailable;
    return std::string("not selected");
  };
  EXPECT_NE(reason_of("torch").find("--peers"), std::string::npos) << reason_of("torch");
  options.peers = true;
  EXPECT_EQ(reason_of("torch").find("--peers"), std::string::npos) << reason_of("torch");
  options.peers = false;
  options.methods = {"torch"};
  EXPECT_EQ(reason_of("torch").find("--peers"), std::string::npos) << reason_of("torch");
  EXPECT_EQ(reason_of("simd/gloo"), "not selected");
}

/// A Python whose process for rank 1 goes wrong as spoiled_torch.py says.
class SpoiledPython {
 public:
  explicit SpoiledPython(const std::string& how) {
    const std::string path =
        directory_.write("python", "#!/bin/sh\n[ \"$1\" = -c ] && exit 0\nexec " + python() +
                                       " -B tests/bench/spoiled_torch.py " + how + " \"$2\" \"$4\"\n");
    chmod(path.c_str(), 0700);
    setenv("SHUNT_PYTHON", path.c_str(), 1);
  }
  ~SpoiledPython() { unsetenv("SHUNT_PYTHON"); }
  SpoiledPython(const SpoiledPython&) = delete;
  SpoiledPython& operator=(const SpoiledPython&) = delete;

  static std::string python() {
    return std::system("/usr/bin/python3 -c 'import torch' 2>/dev/null") == 0 ? "/usr/bin/python3"
                                                                              : "python3";
  }

 private:
  test::TempDir directory_;
};

TEST(PeersTest, SaysWhyTorchEndedAndGoesOnWithTheOthers) {
  if (const std::string why = missing("torch"); !why.empty()) GTEST_SKIP() << why;
  const std::vector<std::array<const char*, 2>> cases{{"raise", "spoiled on purpose"},
                                                      {"kill", "killed by signal 9"},
                                                      {"stop", "was not done"},
                                                      {"wrong", "token 0"}};
  for (const auto& [how, text] : cases) {
    SCOPED_TRACE(how);
    const SpoiledPython python(how);
    AllToAllBenchOptions options = small_options("torch");
    if (how == std::string("stop")) options.deadline_ms = 12'000;
    const AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
    EXPECT_TRUE(report.failed);
    const MethodResult& torch = result_of(report.points.at(0), "torch");
    EXPECT_EQ(torch.status, "failed");
    EXPECT_NE(torch.reason.find("rank 1"), std::string::npos) << torch.reason;
    EXPECT_NE(torch.reason.find(text), std::string::npos) << torch.reason;
    EXPECT_EQ(result_of(report.points.at(0), "shunt").status, "ok");
  }
}

TEST(PeersTest, SkipsATorchThatDoesNotStartWithItsText) {
  if (const std::string why = missing("torch"); !why.empty()) GTEST_SKIP() << why;
  const SpoiledPython python("start");
  const PointResult result = run_one(small_options("torch"));
  EXPECT_EQ(result_of(result, "torch").status, "skipped");
  const std::string& reason = result_of(result, "torch").reason;
  EXPECT_NE(reason.find("no luck today"), std::string::npos) << reason;
  EXPECT_NE(reason.find("status 3"), std::string::npos) << reason;
  EXPECT_EQ(result_of(result, "shunt").status, "ok");
}

struct Ran {
  int status = -1;
  std::string out;  ///< With standard error
};

Ran run_script(const std::string& arguments, const std::string& before = "") {
  const std::string command = before + " " + SpoiledPython::python() +
                              " -B benchmarks/peers/torch_alltoall.py " + arguments + " 2>&1";
  Ran ran;
  std::FILE* const pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return ran;
  std::array<char, 4096> block{};
  for (std::size_t got = 0; (got = std::fread(block.data(), 1, block.size(), pipe)) > 0;)
    ran.out.append(block.data(), got);
  const int status = pclose(pipe);
  ran.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ran;
}

/// The line of `phase` in what the script printed.
std::string line_of(const std::string& text, const std::string& phase) {
  const std::size_t at = text.find("\"phase\": \"" + phase + "\"");
  if (at == std::string::npos) return "no line of " + phase + " in: " + text;
  const std::size_t begin = text.rfind('\n', at) + 1;
  return text.substr(begin, text.find('\n', at) - begin);
}

TEST(PeersTest, ScriptAloneReadsTheTraceAndCountsTheSameBytes) {
  if (const std::string why = missing("torch"); !why.empty()) GTEST_SKIP() << why;
  const Ran ran =
      run_script("--ranks 2 --trace data/traces/example.jsonl --hidden 130 --tokens 6 --iterations 3");
  EXPECT_EQ(ran.status, 0) << ran.out;
  AllToAllBenchOptions options = small_options("shunt");
  options.num_experts = 8;
  options.top_k = 2;
  options.routings = {"trace:data/traces/example.jsonl"};
  const PointResult result = run_one(options);
  for (const auto& [phase, bytes] : {std::pair<const char*, std::int64_t>{"dispatch", result.dispatch_bytes},
                                     {"combine", result.combine_bytes},
                                     {"touch", result.touch_bytes}}) {
    const std::string line = line_of(ran.out, phase);
    EXPECT_NE(line.find("\"bytes\": " + std::to_string(bytes) + ","), std::string::npos) << line;
    EXPECT_NE(line.find("\"correct\": true"), std::string::npos) << line;
    EXPECT_NE(line.find("\"samples\": 3"), std::string::npos) << line;
  }
}

TEST(PeersTest, ScriptAloneTakesRanksFromTheEnvironment) {
  if (const std::string why = missing("torch"); !why.empty()) GTEST_SKIP() << why;
  const std::string other = "export WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29544; RANK=1 " +
                            SpoiledPython::python() +
                            " -B benchmarks/peers/torch_alltoall.py --dp-size 2 --in-dtype float8_e4m3fn "
                            "--tokens 9 --hidden 300 & RANK=0";
  const Ran ran = run_script("--dp-size 2 --in-dtype float8_e4m3fn --tokens 9 --hidden 300", other);
  EXPECT_EQ(ran.status, 0) << ran.out;
  EXPECT_NE(line_of(ran.out, "total").find("\"correct\": true"), std::string::npos) << ran.out;
}

TEST(PeersTest, ScriptAloneRefusesWhatCannotBe) {
  if (const std::string why = missing("torch"); !why.empty()) GTEST_SKIP() << why;
  const test::TempDir directory;
  const std::string bad = directory.write("bad.jsonl",
                                          "{\"record\":\"trace\",\"format\":1,\"experts\":4,\"topk\":2,"
                                          "\"groups\":1,\"steps\":1,\"source\":\"\"}\n"
                                          "{\"step\":0,\"group\":0,\"ids\":[[0,4]],\"weights\":[[1,1]]}\n");
  for (const auto& [arguments, text] :
       {std::pair<std::string, std::string>{"--trace " + bad + " --ranks 1", bad + ":2: "},
        {"--ranks 3 --dp-size 2", "allowed: a divisor"},
        {"", "RANK, WORLD_SIZE"}}) {
    const Ran ran = run_script(arguments, "env -u RANK -u WORLD_SIZE");
    EXPECT_NE(ran.status, 0) << arguments;
    EXPECT_NE(ran.out.find(text), std::string::npos) << ran.out;
    EXPECT_EQ(ran.out.find("Traceback"), std::string::npos) << ran.out;
  }
}

}  // namespace
}  // namespace shunt::bench

// `shunt trace` as users call it.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include <gtest/gtest.h>

#include "process.h"

namespace shunt::cli {
namespace {

namespace fs = std::filesystem;

class TraceTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "shunt-trace-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { fs::remove_all(directory_); }
  [[nodiscard]] std::string path(const std::string& name) const { return (directory_ / name).string(); }
  fs::path directory_;
};

TEST_F(TraceTest, GeneratesAndDescribes) {
  const std::string file = path("trace.jsonl");
  const Ended made = run_shunt({"trace", "generate", "--preset", "r1", "--tokens", "64", "--groups", "2",
                                "--steps", "2", "--routing", "powerlaw:1", "--out", file});
  EXPECT_EQ(made.status, 0) << made.err;
  const Ended told = run_shunt({"trace", "stats", file, "--each", "step", "--capacity-factors", "1,1.25",
                                "--jsonl", path("loads.jsonl")});
  EXPECT_EQ(told.status, 0) << told.err;
  EXPECT_NE(told.out.find("256 experts, top-8, 2 steps of 2 groups"), std::string::npos) << told.out;
  EXPECT_NE(told.out.find("drop@1.25"), std::string::npos) << told.out;
  EXPECT_NE(told.out.find("\nstep 1 "), std::string::npos) << told.out;
  std::ifstream in(path("loads.jsonl"));
  const std::string lines{std::istreambuf_iterator<char>(in), {}};
  EXPECT_NE(lines.find(R"("record":"trace_load")"), std::string::npos) << lines;
}

TEST_F(TraceTest, GatesMakeTracesToo) {
  const Ended made = run_shunt({"trace", "generate", "--experts", "32", "--topk", "4", "--tokens", "100",
                                "--gate", "deepseek-v3", "--skew", "1", "--out", path("gate.jsonl")});
  EXPECT_EQ(made.status, 0) << made.err;
  EXPECT_EQ(run_shunt({"trace", "stats", path("gate.jsonl")}).out, made.out);
  const Ended routed = run_shunt({"trace",         "generate",
                                  "--experts",     "32",
                                  "--topk",        "4",
                                  "--tokens",      "100",
                                  "--gate",        "softk",
                                  "--router-arch", "cosine",
                                  "--hidden",      "32",
                                  "--jitter",      "0.01",
                                  "--noise",       "0.1",
                                  "--temperature", "2",
                                  "--out",         path("cosine.jsonl")});
  EXPECT_EQ(routed.status, 0) << routed.err;
}

TEST_F(TraceTest, RefusesBadInputWithStatusTwo) {
  const std::string file = path("bad.jsonl");
  const std::vector<std::pair<std::vector<std::string>, const char*>> cases{
      {{"trace", "generate", "--out", file}, "needs --experts and --topk"},
      {{"trace", "generate", "--experts", "4", "--topk", "5", "--out", file}, "outside [1, 4]"},
      {{"trace", "generate", "--experts", "8", "--topk", "2", "--gate", "softkk", "--out", file},
       "did you mean \"softk\"?"},
      {{"trace", "generate", "--experts", "12", "--topk", "2", "--gate", "deepseek-v3", "--out", file},
       "8 groups do not divide 12 experts"},
      {{"trace", "generate", "--experts", "8", "--topk", "2", "--gate", "softk", "--routing", "one", "--out",
        file},
       "exclude each other"},
      {{"trace", "stats", "data/traces/example.jsonl", "--capacity-factors", "0"}, "--capacity-factors"},
      {{"trace", "stats", "data/traces/example.jsonl", "--each", "rank"}, "allowed: step, group"},
      {{"trace", "stats", path("nosuch.jsonl")}, "nosuch.jsonl"},
      {{"trace"}, "subcommand"},
  };
  for (const auto& [words, expected] : cases) {
    const Ended ended = run_shunt(words);
    EXPECT_EQ(ended.status, 2) << words.back();
    EXPECT_NE(ended.err.find(expected), std::string::npos) << ended.err;
    EXPECT_FALSE(fs::exists(file));
  }
}

TEST_F(TraceTest, RoutingBenchmarksAndSweepsRun) {
  const std::vector<std::string> small{"--num-tokens", "40", "--hidden-dim", "24", "--num-experts", "8",
                                       "--iters",      "3",  "--warmup",     "1"};
  for (const char* name : {"topk", "routing", "capacity"}) {
    std::vector<std::string> words{"bench", name, "--jsonl", path(std::string(name) + ".jsonl")};
    words.insert(words.end(), small.begin(), small.end());
    const Ended ended = run_shunt(words);
    EXPECT_EQ(ended.status, 0) << ended.err;
    EXPECT_NE(ended.out.find("\nsimd "), std::string::npos) << ended.out;
    EXPECT_EQ(run_shunt(words).status, 2) << "the record file is there already";
  }
  const std::vector<std::string> sweep{"sweep",
                                       "capacity",
                                       "--tokens",
                                       "30",
                                       "--hidden",
                                       "16",
                                       "--topk",
                                       "1,2",
                                       "--strategy",
                                       "sigmoid",
                                       "--iters",
                                       "3",
                                       "--out",
                                       path("sweep.jsonl"),
                                       "--renorm-after-drop"};
  Ended ended = run_shunt(sweep);
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_NE(ended.out.find("# 24 results, 0 were there already"), std::string::npos) << ended.out;
  ended = run_shunt(sweep);
  EXPECT_NE(ended.out.find("# 0 results, 24 were there already"), std::string::npos) << ended.out;
  const std::vector<std::pair<std::vector<std::string>, const char*>> refused{
      {{"bench", "topk", "--top-k", "200"}, "outside [1, 128]"},
      {{"bench", "routing", "--gate", "softkk"}, "did you mean \"softk\"?"},
      {{"bench", "capacity", "--capacity-factors", "0"}, "factor 0 is not a finite number > 0"},
      {{"bench", "capacity", "--impl", "fast"}, "allowed: scalar, simd, torch"},
      {{"bench", "routing", "--jitter", "0.1"}, "--router-arch"},
      {{"sweep", "pack", "--experts", "0"}, "--experts"},
      {{"sweep"}, "subcommand"},
  };
  for (const auto& [words, expected] : refused) {
    ended = run_shunt(words);
    EXPECT_NE(ended.status, 0) << words.back();
    EXPECT_NE(ended.err.find(expected), std::string::npos) << ended.err;
  }
}

}  // namespace
}  // namespace shunt::cli

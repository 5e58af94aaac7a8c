#include <shunt/bench/routing_bench.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <shunt/bench/sweep.h>
#include <shunt/core/error.h>

#include "routing_moves.h"
#include "team.h"
#include "torch_plugin.h"

namespace shunt::bench {
namespace {

namespace fs = std::filesystem;

RoutingPoint small(RoutingWork work) {
  RoutingPoint point;
  point.work = work;
  point.tokens = 75;
  point.hidden = 37;
  point.num_experts = 12;
  point.top_k = 3;
  point.warmup = 1;
  point.iterations = 4;
  return point;
}

constexpr RoutingWork kWorks[] = {RoutingWork::topk, RoutingWork::routing, RoutingWork::capacity,
                                  RoutingWork::pack_only, RoutingWork::combine_only};

class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "shunt-routing-bench-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw Error(Errc::io, "no temporary folder");
    path_ = name;
  }
  ~Folder() { fs::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

std::vector<nlohmann::json> lines_of(const std::string& path) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(RoutingBenchTest, BothImplementationsOfEveryWorkAreRight) {
  for (const RoutingWork work : kWorks) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      RoutingPoint point = small(work);
      point.dtype = dtype;
      point.threads = dtype == DType::f32 ? 1 : 3;
      const RoutingResult result = measure_point(point);
      EXPECT_FALSE(result.failed);
      ASSERT_EQ(result.rows.size(), work == RoutingWork::topk ? 2U : 3U);
      EXPECT_EQ(result.rows[0].impl, "scalar");
      EXPECT_EQ(result.rows[0].isa, "scalar");
      EXPECT_EQ(result.rows[1].impl, "simd");
      for (const RoutingRow& row : result.rows) {
        EXPECT_EQ(row.ms.count, 4) << row.impl;
        EXPECT_TRUE(row.correct) << row.impl << ": " << row.reason;
      }
    }
  }
}

TEST(RoutingBenchTest, RowsBeyondTheCachesAreRightToo) {
  RoutingPoint point = small(RoutingWork::routing);
  point.tokens = 1100;
  point.hidden = 4097;
  point.top_k = 2;
  point.dtype = DType::f32;  // 36 MB of rows
  point.impls = {"simd"};
  point.warmup = 0;
  point.iterations = 1;
  const RoutingResult result = measure_point(point);
  EXPECT_FALSE(result.failed) << result.rows[0].reason;
}

TEST(RoutingBenchTest, EveryGateCanBePacked) {
  for (const std::string& gate : gate_names()) {
    RoutingPoint point = small(RoutingWork::capacity);
    point.num_experts = 16;
    point.gate = gate;
    if (gate.find("top1") != std::string::npos) point.top_k = 1;
    if (!gate.starts_with("compat-top")) point.renormalise = Renormalise::keep_sum;
    point.impls = {"simd"};
    point.iterations = 1;
    const RoutingResult result = measure_point(point);
    EXPECT_FALSE(result.failed) << gate << ": " << result.rows[0].reason;
  }
}

TEST(RoutingBenchTest, LibtorchComputesTheSame) {
  const std::string reason = torch_unavailable_reason();
  if (!reason.empty()) GTEST_SKIP() << reason;
  for (const RoutingWork work : kWorks) {
    for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
      for (const bool other : {false, true}) {  // ids of -1, rows added up, capacity
        RoutingPoint point = small(work);
        point.dtype = dtype;
        point.impls = {"simd", "torch"};
        if (other && work != RoutingWork::topk) point.gate = "expert-choice";
        point.weighted = !other;
        point.capacity_factor = 0.7;
        point.threads = 2;
        const RoutingResult result = measure_point(point);
        const std::string where =
            routing_work_name(work) + " " + dtype_name(dtype) + (other ? " expert-choice" : "");
        ASSERT_GE(result.rows.size(), 2U);
        EXPECT_TRUE(result.rows[0].correct) << where << ": simd: " << result.rows[0].reason;
        EXPECT_TRUE(result.rows[1].correct) << where << ": torch: " << result.rows[1].reason;
        EXPECT_NE(result.rows[1].written, "") << where;
        EXPECT_GT(result.speedup_over("torch", result.rows[0]), 0) << where;
      }
    }
  }
}

TEST(RoutingBenchTest, EveryRouterMakesAChoice) {
  double entropy = 0;
  for (const char* router : {"linear", "mlp", "mlp-hadamard", "cosine"}) {
    RoutingPoint point = small(RoutingWork::routing);
    point.router = router;
    point.impls = {"simd"};
    point.iterations = 1;
    const RoutingResult plain = measure_point(point);
    EXPECT_FALSE(plain.failed) << router << ": " << plain.rows[0].reason;
    EXPECT_GT(plain.router_ms, 0) << router;
    EXPECT_NE(plain.gate.entropy, entropy) << router << " is the network before it";
    entropy = plain.gate.entropy;
    point.threads = 3;  // the choice does not depend on them
    EXPECT_EQ(measure_point(point).gate.entropy, entropy) << router;
    point.jitter = 0.5;
    EXPECT_NE(measure_point(point).gate.entropy, entropy) << router << ": jitter";
    point.jitter = 0;
    point.noise = 1;
    EXPECT_NE(measure_point(point).gate.entropy, entropy) << router << ": noise";
    point.noise = 0;
    point.temperature = 4;
    EXPECT_GT(measure_point(point).gate.entropy, entropy) << router << ": temperature";
  }
}

TEST(RoutingBenchTest, HalvesCountHalfTheBytes) {
  const RoutingResult pack = measure_point(small(RoutingWork::pack_only));
  const RoutingResult combine = measure_point(small(RoutingWork::combine_only));
  EXPECT_EQ(pack.bytes_per_token_strict(), (1 + 3) * 37 * 2);
  EXPECT_EQ(combine.bytes_per_token_strict(), (1 + 3) * 37 * 2);
  EXPECT_EQ(pack.kept_bytes(), pack.strict_bytes());
  EXPECT_EQ(combine.kept_bytes(), combine.strict_bytes());
  EXPECT_EQ(pack.rows[0].combine_ms, 0);
  EXPECT_EQ(combine.rows[0].pack_ms, 0);
  EXPECT_GT(pack.rows[0].pack_ms, 0);
  EXPECT_GT(combine.rows[0].combine_ms, 0);
}

TEST(TeamTest, DoesEveryPartOfEveryCall) {
  for (const std::int32_t size : {1, 2, 5}) {
    Team team(size);
    EXPECT_EQ(team.size(), size);
    std::vector<std::int32_t> touched(97, 0);
    for (int call = 0; call < 200; ++call)
      team.share(97, [&touched](std::int32_t /*part*/, std::int64_t from, std::int64_t to) {
        for (std::int64_t i = from; i < to; ++i) ++touched[static_cast<std::size_t>(i)];
      });
    EXPECT_EQ(touched, std::vector<std::int32_t>(97, 200)) << size << " threads";
  }
}

TEST(RoutingBenchTest, CountsBytesByBothFormulas) {
  RoutingPoint point = small(RoutingWork::capacity);
  point.capacity_factor = 0.5;
  const RoutingResult result = measure_point(point);
  EXPECT_EQ(result.bytes_per_token_strict(), (2 + 2 * 3) * 37 * 2);
  EXPECT_EQ(result.strict_bytes(), 75 * 8 * 37 * 2);
  // ceil(0.5 * 75 * 3 / 12) of each expert.
  EXPECT_EQ(result.capacity, 10);
  EXPECT_EQ(result.kept, 120);
  EXPECT_EQ(result.kept_load.max, 10);
  EXPECT_EQ(result.kept_load.total, 120);
  EXPECT_EQ(result.load.total, 225);
  EXPECT_DOUBLE_EQ(result.avg_drop_rate, 1 - 120.0 / 225);
  EXPECT_EQ(result.kept_bytes(), (result.kept_tokens + 2 * 120 + 75) * 37 * 2);
  EXPECT_EQ(result.kept_tokens, std::llround(75 * (1 - result.token_drop_rate)));
  EXPECT_GT(result.load.cv, result.kept_load.cv);
}

// Experts take what the factor leaves them, so nothing is dropped; bytes go by K as asked, whatever the width of rows.
TEST(RoutingBenchTest, ExpertChoiceTakesWhatTheFactorSays) {
  for (const double factor : {0.25, 0.5, 2.0}) {
    RoutingPoint point = small(RoutingWork::capacity);
    point.gate = "expert-choice";
    point.impls = {"simd"};
    point.capacity_factor = factor;
    const RoutingResult result = measure_point(point);
    EXPECT_FALSE(result.failed);
    EXPECT_EQ(result.load.total, 12 * result.capacity) << factor;
    EXPECT_EQ(result.load.max, result.capacity);
    EXPECT_EQ(result.avg_drop_rate, 0.0);
    EXPECT_EQ(result.bytes_per_token_strict(), (2 + 2 * 3) * 37 * 2);
    EXPECT_EQ(result.requested_k, 3);
  }
}

TEST(RoutingBenchTest, BalanceStepsEvenTheLoad) {
  for (const char* gate : {"quantile", "sigmoid"}) {
    RoutingPoint point = small(RoutingWork::routing);
    point.gate = gate;
    point.impls = {"simd"};
    point.iterations = 1;
    const double before = measure_point(point).load.cv;
    point.balance_steps = 200;
    EXPECT_LT(measure_point(point).load.cv, 0.5 * before) << gate;
  }
}

TEST(RoutingBenchTest, ChecksFindWhatIsWrong) {
  const RoutingPoint point = small(RoutingWork::routing);
  GateOutput<float> gate{point.tokens, point.num_experts, point.top_k, {}, {}};
  for (std::int32_t i = 0; i < 75 * 3; ++i) {
    gate.ids.push_back(i * 5 % 12);
    gate.weights.push_back(0.25F * static_cast<float>(i % 3));
  }
  const CapacityPlan plan = plan_capacity<float>(gate, {.mode = CapacityMode::dropless});
  Team team(2);
  RoutingMoves moves(point, gate, plan, 0, team);
  EXPECT_NE(moves.check(), "");  // nothing was packed yet
  (void)moves.run(pack_kernels());
  EXPECT_EQ(moves.check(), "");
  moves.spoil();
  EXPECT_NE(moves.check(), "");
  // Another plan than the one that is packed.
  CapacityPlan other = plan;
  other.places[0] = -1;
  RoutingMoves astray(point, gate, other, 0, team);
  (void)astray.run(pack_kernels());
  EXPECT_EQ(astray.check(), "choice 0 of token 0 is in row 0, not -1");
}

TEST(RoutingBenchTest, RecordsHaveTheOldNames) {
  const Folder folder;
  RoutingBenchOptions options;
  options.point = small(RoutingWork::capacity);
  options.capacity_factors = {0.75, 4};
  options.jsonl = folder.file("records.jsonl");
  std::string text;
  BenchOutput output;
  output.text = [&text](const std::string& part) { text += part; };
  const RoutingBenchReport report = run_routing_bench(options, {"shunt"}, output);
  EXPECT_FALSE(report.failed);
  ASSERT_EQ(report.results.size(), 2U);
  EXPECT_NE(text.find("capacity factor 0.75"), std::string::npos) << text;
  const auto lines = lines_of(options.jsonl);
  ASSERT_EQ(lines.size(), 1U + 2 * 3);
  for (const char* key : {"name",
                          "impl",
                          "avg_ms",
                          "std_ms",
                          "tokens_per_s",
                          "num_tokens",
                          "hidden_dim",
                          "num_experts",
                          "top_k",
                          "dtype",
                          "device",
                          "seed",
                          "warmup",
                          "iters",
                          "capacity_factor",
                          "avg_drop_rate",
                          "token_drop_rate",
                          "bytes_per_token_strict",
                          "bw_GiBps_strict",
                          "bw_GBps_strict",
                          "bw_GiBps_kept",
                          "load_mean",
                          "load_std",
                          "load_cv",
                          "kept_load_cv",
                          "used_capacity",
                          "correct"})
    EXPECT_TRUE(lines[1].contains(key)) << key;
  EXPECT_EQ(lines[1]["seed"], 17);
  EXPECT_NEAR(lines[1]["bw_GBps_strict"].get<double>() / lines[1]["bw_GiBps_strict"].get<double>(),
              1.073741824, 1e-9);
  EXPECT_NEAR(lines[1]["tokens_per_s"].get<double>(), 75e3 / lines[1]["avg_ms"].get<double>(), 1e-6);
  EXPECT_GT(lines[1]["avg_drop_rate"].get<double>(), 0.2);
  EXPECT_EQ(lines[4]["avg_drop_rate"], 0.0);
  EXPECT_THROW((void)run_routing_bench(options, {"shunt"}, {}), Error);  // never overwritten
}

TEST(RoutingBenchTest, RefusesWhatCannotBe) {
  const auto asked = [](const std::function<void(RoutingPoint&)>& change) {
    RoutingPoint point = small(RoutingWork::capacity);
    change(point);
    return refusal([&point] { (void)measure_point(point); });
  };
  EXPECT_NE(asked([](RoutingPoint& p) { p.gate = "hash", p.balance_steps = 1; }).find("--balance-steps is 1"),
            std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) {
              p.gate = "compat-topk-hard", p.renormalise = Renormalise::keep_sum;
            }).find("adds outputs up"),
            std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.top_k = 13; }).find("top-k 13 is outside [1, 12]"),
            std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.capacity_factor = 0; }).find("factor 0"), std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.gate = "softkk"; }).find("did you mean \"softk\"?"),
            std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.impls = {"fast"}; }).find("allowed: scalar, simd"),
            std::string::npos);
  if (!torch_unavailable_reason().empty()) {
    EXPECT_NE(asked([](RoutingPoint& p) { p.impls = {"torch"}; }).find("install-dependencies torch"),
              std::string::npos);
  }
  EXPECT_NE(asked([](RoutingPoint& p) { p.router = "line"; }).find("did you mean \"linear\"?"),
            std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.jitter = 0.1; }).find("--router-arch"), std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.temperature = 0; }).find("--temperature"), std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.noise = -1; }).find("--noise"), std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.threads = -1; }).find("--threads"), std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.dtype = DType::f8e4m3; }).find("--dtype"), std::string::npos);
  EXPECT_NE(asked([](RoutingPoint& p) { p.tokens = 1 << 29; }).find("more than"), std::string::npos);
}

SweepOptions small_sweep(const std::string& output) {
  SweepOptions options;
  options.point = small(RoutingWork::capacity);
  options.point.impls = {"simd"};
  options.point.iterations = 3;
  options.tokens = {20};
  options.hidden = {16};
  options.experts = {4, 8};
  options.top_k = {1, 2};
  options.capacity_factors = {1.0, 1.5};
  options.output = output;
  return options;
}

TEST(SweepTest, MeasuresEachPointOnce) {
  const Folder folder;
  SweepOptions options = small_sweep(folder.file("new/sweep.jsonl"));
  options.top_k = {1};
  SweepReport report = run_sweep(options, {"shunt"}, {});
  EXPECT_EQ(report.measured, 4);
  EXPECT_EQ(report.skipped, 0);
  options.top_k = {1, 2};
  options.dry_run = true;
  std::string text;
  BenchOutput output;
  output.text = [&text](const std::string& part) { text += part; };
  (void)run_sweep(options, {"shunt"}, output);
  EXPECT_EQ(text.find("topk=1 "), std::string::npos) << text;
  EXPECT_NE(text.find(" tokens=20 hidden=16 experts=4 topk=2"), std::string::npos) << text;
  options.dry_run = false;
  report = run_sweep(options, {"shunt"}, {});
  EXPECT_EQ(report.measured, 4);
  EXPECT_EQ(report.skipped, 4);
  EXPECT_EQ(run_sweep(options, {"shunt"}, {}).measured, 0);
  const auto lines = lines_of(options.output);
  ASSERT_EQ(lines.size(), 2U + 8);
  for (const char* key :
       {"timestamp", "git_sha", "device", "backend", "strategy", "renorm_after_drop", "tokens", "experts",
        "hidden", "k", "requested_k", "capacity_factor", "capacity", "avg_drop_rate", "token_drop_rate",
        "elapsed_ms", "bw_GiBps_strict", "bytes_per_token_strict"})
    EXPECT_TRUE(lines[1].contains(key)) << key;
  // Another seed is another point.
  options.point.seed = 18;
  EXPECT_EQ(run_sweep(options, {"shunt"}, {}).measured, 8);
}

TEST(SweepTest, GoesOnAfterALineThatWasCutOff) {
  const Folder folder;
  const SweepOptions options = small_sweep(folder.file("sweep.jsonl"));
  EXPECT_EQ(run_sweep(options, {"shunt"}, {}).measured, 8);
  fs::resize_file(options.output, fs::file_size(options.output) - 40);
  const SweepReport report = run_sweep(options, {"shunt"}, {});
  EXPECT_EQ(report.measured, 1);
  EXPECT_EQ(report.skipped, 7);
  EXPECT_EQ(lines_of(options.output).size(), 2U + 8);  // every line can be parsed
}

TEST(SweepTest, LeavesFilesOfOthersAlone) {
  const Folder folder;
  const SweepOptions options = small_sweep(folder.file("notes.txt"));
  for (const std::string text :
       {"my notes, one line, no newline", "{\"step\":1}\n",
        "{\"record\":\"result\",\"bench\":\"capacity\"}\n", "{\"record\":\"context\"}\nnotes", "\n"}) {
    std::ofstream(options.output, std::ios::binary) << text;
    EXPECT_NE(refusal([&options] { (void)run_sweep(options, {"shunt"}, {}); }).find("no line of a sweep"),
              std::string::npos)
        << text;
    std::ifstream in(options.output, std::ios::binary);
    EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), text);
  }
}

TEST(SweepTest, OneExpertGatesAreMeasuredOnce) {
  SweepOptions options = small_sweep("unused");
  options.point.gate = "top1";
  EXPECT_EQ(sweep_points(options).size(), 4U);
  options.point.gate = "softk";
  EXPECT_EQ(sweep_points(options).size(), 8U);
  options.point.work = RoutingWork::routing;
  EXPECT_EQ(sweep_points(options).size(), 4U);
  options.experts.clear();
  EXPECT_NE(refusal([&options] { (void)sweep_points(options); }).find("an axis"), std::string::npos);
  options.experts = {1};
  EXPECT_NE(refusal([&options] { (void)sweep_points(options); }).find("outside [1, 1]"), std::string::npos);
}

}  // namespace
}  // namespace shunt::bench

#include <shunt/bench/overlap_bench.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <set>

#include <shunt/core/error.h>

#include "overlap_methods.h"
#include "points.h"

namespace shunt::bench {
namespace {

/// Loops; can be told to leave a mistake in its result.
class LoopGemm final : public Gemm {
 public:
  LoopGemm(const GemmShape& shape, float mistake)
      : shape_(shape), mistake_(mistake), c_(static_cast<std::size_t>(shape.m * shape.n)) {}
  void run() override {
    for (std::int64_t i = 0; i < shape_.m; ++i)
      for (std::int64_t j = 0; j < shape_.n; ++j)
        c_[static_cast<std::size_t>(i * shape_.n + j)] = static_cast<float>(gemm_result(shape_, i, j));
    c_.back() += mistake_;
  }
  void poison() override { std::fill(c_.begin(), c_.end(), std::numeric_limits<float>::quiet_NaN()); }
  std::string check() override {
    return check_gemm(shape_, [this](std::int64_t row, std::int64_t column) {
      return c_[static_cast<std::size_t>(row * shape_.n + column)];
    });
  }

 private:
  GemmShape shape_;
  float mistake_;
  std::vector<float> c_;
};

MakeGemm loops(float mistake = 0) {
  return [mistake](const GemmShape& shape, void*) { return std::make_unique<LoopGemm>(shape, mistake); };
}

OverlapBenchOptions small(RankMode mode) {
  OverlapBenchOptions options;
  options.points.ranks = 2;
  options.points.mode = mode;
  options.points.num_experts = 7;
  options.points.top_k = 3;
  options.points.hidden = 70;
  options.points.tokens = {5};
  options.points.rounds = 1;
  options.points.iterations = 2;
  options.points.max_seconds = 20;
  options.gemm_columns = 9;
  options.make_gemm = loops();
  return options;
}

TEST(OverlapBenchTest, MeasuresTheFourWaysAndChecksThem) {
  for (const RankMode mode : {RankMode::processes, RankMode::threads}) {
    OverlapBenchOptions options = small(mode);
    options.points.in_dtype = DType::f8e4m3;
    options.points.ranks = 3;
    std::string text;
    const OverlapBenchReport report = run_overlap_bench(
        options, {"test"}, {.text = [&](const std::string& part) { text += part; }, .progress = {}});
    EXPECT_EQ(report.status, 0);
    ASSERT_EQ(report.points.size(), 1U);
    const PointResult& point = report.points[0];
    ASSERT_EQ(point.methods.size(), kOverlapWays.size());
    for (std::size_t i = 0; i < kOverlapWays.size(); ++i) {
      const MethodResult& way = point.methods[i];
      EXPECT_EQ(way.name, kOverlapWays.at(i));
      EXPECT_EQ(way.status, "ok") << way.reason;
      EXPECT_TRUE(way.correct);
      EXPECT_EQ(way.result_hash.empty(), way.name == "gemm");
      EXPECT_EQ(way.result_hash == point.methods[0].result_hash, way.name != "gemm");
      EXPECT_EQ(way.work, way.name == "communication" ? "" : "5 x 9 x 70, float32");
      EXPECT_EQ(way.flops, way.name == "communication" ? 0 : 2 * 2 * 5 * 9 * 70);
    }
    EXPECT_NE(text.find("product of each rank, once in each half: 5 x 9 x 70, float32"), std::string::npos);
  }
}

TEST(OverlapBenchTest, LeavesTheTouchOutOfTheTotal) {
  OverlapBenchOptions options = small(RankMode::threads);
  options.points.iterations = 1;
  options.points.warmup = 0;
  const OverlapBenchReport report = run_overlap_bench(options, {"test"}, {});
  for (const MethodResult& way : report.points.at(0).methods)
    for (const PhaseResult& total : way.phases) {
      if (total.phase != "total" || total.us.count != 1) continue;
      EXPECT_NEAR(
          total.us.median,
          way.find(total.placement, "dispatch")->us.median + way.find(total.placement, "combine")->us.median,
          1e-9);
    }
}

TEST(OverlapBenchTest, FailsWaysWhoseProductIsWrong) {
  OverlapBenchOptions options = small(RankMode::threads);
  options.make_gemm = loops(1);
  const OverlapBenchReport report = run_overlap_bench(options, {"test"}, {});
  EXPECT_TRUE(report.failed);
  EXPECT_EQ(report.status, 1);
  for (const MethodResult& way : report.points.at(0).methods) {
    EXPECT_EQ(way.status, way.name == "communication" ? "ok" : "failed");
    if (way.name != "communication") {
      EXPECT_NE(way.reason.find("the matrix product 5 x 9 x 70, float32 has"), std::string::npos)
          << way.reason;
    }
  }
}

TEST(OverlapBenchTest, SaysWhyWhereNothingComputesProducts) {
  OverlapBenchOptions options = small(RankMode::threads);
  options.make_gemm = [](const GemmShape&, void*) -> std::unique_ptr<Gemm> {
    throw Error(Errc::unavailable, "no such product here");
  };
  try {
    static_cast<void>(run_overlap_bench(options, {"test"}, {}));
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::unavailable);
    EXPECT_NE(std::string(error.what()).find("no such product here"), std::string::npos) << error.what();
  }
}

TEST(OverlapBenchTest, MatchesTheProductToTheCommunication) {
  OverlapBenchOptions options = small(RankMode::processes);
  options.gemm_columns = 0;
  const OverlapBenchReport report = run_overlap_bench(options, {"test"}, {});
  const std::string& work = report.points.at(0).methods.at(1).work;
  EXPECT_EQ(work.find("5 x "), 0U) << work;
  const std::int64_t columns = std::atoll(work.c_str() + 4);
  EXPECT_GE(columns, 16);
  EXPECT_EQ(columns % 16, 0);
}

TEST(OverlapBenchTest, WritesRecordsAndOverwritesNothing) {
  char folder[] = "/tmp/shunt-overlap-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  OverlapBenchOptions options = small(RankMode::processes);
  options.jsonl = std::string(folder) + "/overlap.jsonl";
  const OverlapBenchReport report = run_overlap_bench(options, {"shunt", "bench", "overlap"}, {});
  std::ifstream in(options.jsonl);
  std::string line;
  ASSERT_TRUE(std::getline(in, line));
  EXPECT_EQ(nlohmann::json::parse(line).at("device"), "cpu");
  std::set<std::string> seen;
  while (std::getline(in, line)) {
    const auto record = nlohmann::json::parse(line);
    EXPECT_EQ(record.at("bench"), "overlap");
    EXPECT_EQ(record.at("hidden"), 70);
    EXPECT_EQ(record.at("gemm_flops"), 2 * 2 * 5 * 9 * 70);
    seen.insert(record.at("method").get<std::string>() + "/" + record.at("phase").get<std::string>());
    if (record.at("method") == "hidden") {
      EXPECT_DOUBLE_EQ(record.at("hidden_share"),
                       hidden_share(report.points[0], record.at("placement"), record.at("phase")).share);
    }
  }
  for (const char* way : kOverlapWays)
    for (const char* phase : {"dispatch", "combine", "total"})
      EXPECT_TRUE(seen.contains(std::string(way) + "/" + phase)) << way << " " << phase;
  EXPECT_THROW(static_cast<void>(run_overlap_bench(options, {}, {})), Error);
  std::filesystem::remove_all(folder);
}

TEST(OverlapBenchTest, NamesAnOptionThatIsNotAllowed) {
  const auto refusal = [](const auto& change) -> std::string {
    OverlapBenchOptions options = small(RankMode::threads);
    change(options);
    try {
      static_cast<void>(run_overlap_bench(options, {}, {}));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::invalid_argument);
      return error.what();
    }
    return "nothing";
  };
  EXPECT_NE(refusal([](auto& o) { o.device = "gpu"; }).find("--device: \"gpu\""), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.gemm_dtype = DType::f16; }).find("--gemm-dtype is float16"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.gemm_columns = 1 << 20; }).find("the columns of --gemm are 1048576"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.points.methods = {"shunt"}; }).find("--methods: \"shunt\""),
            std::string::npos);
}

PhaseResult phase(const char* name, double low, double median, double high) {
  PhaseResult result{.placement = "near", .phase = name, .rounds = 10, .us = {}};
  result.us.median = median;
  result.us.median_low = low;
  result.us.median_high = high;
  return result;
}

TEST(HiddenShareTest, IsWhatOverlapSavesOfTheCommunication) {
  PointResult point;
  const double medians[] = {100, 40, 150, 120};
  for (std::size_t i = 0; i < kOverlapWays.size(); ++i) {
    MethodResult way;
    way.name = kOverlapWays.at(i);
    way.phases.push_back(phase("total", medians[i] - 5, medians[i], medians[i] + 10));
    point.methods.push_back(way);
  }
  const Hidden hidden = hidden_share(point, "near", "total");
  EXPECT_DOUBLE_EQ(hidden.share, 0.3);
  EXPECT_DOUBLE_EQ(hidden.low, 0.15);   // (145 - 130) / 100
  EXPECT_DOUBLE_EQ(hidden.high, 0.45);  // (160 - 115) / 100
  EXPECT_DOUBLE_EQ(hidden.most, 0.4);
  EXPECT_THROW(static_cast<void>(hidden_share(point, "far", "total")), Error);
  point.methods[3].status = "failed";
  EXPECT_THROW(static_cast<void>(hidden_share(point, "near", "total")), Error);
}

TEST(OverlapMethodsTest, ScaleColumnsTowardsTheTimeWanted) {
  EXPECT_EQ(next_columns(64, 1000, 2000, 4096), 128);
  EXPECT_EQ(next_columns(64, 1000, 1e9, 4096), 1024) << "at most 16 times";
  EXPECT_EQ(next_columns(64, 1000, 1e9, 512), 512);
  EXPECT_EQ(next_columns(64, 1000, 0, 4096), 16);
  EXPECT_EQ(next_columns(64, 0, 1000, 4096), 1024);
}

/// Notes what is called.
class LoggingStep final : public SplitMethod {
 public:
  explicit LoggingStep(std::string& log) : log_(log) {}
  void run_phase(std::int32_t phase, const std::function<void()>& work) override {
    phases.push_back(phase);
    log_ += "(";
    work();
    log_ += ")";
  }
  void dispatch_send() override { log_ += "s"; }
  void dispatch_recv() override { log_ += "r"; }
  void touch() override { log_ += "t"; }
  void combine_send() override { log_ += "S"; }
  void combine_recv() override { log_ += "R"; }
  [[nodiscard]] ArrivedRows arrived() const override { return {}; }
  [[nodiscard]] const std::byte* combined() const override { return nullptr; }
  void poison() override {}

  std::vector<std::int32_t> phases;

 private:
  std::string& log_;
};

class LoggingGemm final : public Gemm {
 public:
  explicit LoggingGemm(std::string& log) : log_(log) {}
  void run() override { log_ += "g"; }
  void poison() override {}
  std::string check() override { return {}; }

 private:
  std::string& log_;
};

TEST(OverlapMethodsTest, PutTheProductWhereEachWaySays) {
  Point point = small_point();
  point.ranks = 1;
  const Workload workload(point, nullptr);
  std::string log;
  LoggingStep* step = nullptr;
  const std::vector<MethodSpec> specs = overlap_methods(
      {.rows = 0,
       .columns = 1,
       .depth = 0,
       .dtype = DType::f32,
       .make_step =
           [&](const MethodContext&) {
             auto made = std::make_unique<LoggingStep>(log);
             step = made.get();
             return made;
           },
       .step_bytes = [](const Workload&, const MethodSettings&) { return std::int64_t{0}; },
       .make_gemm = [&](const GemmShape&, void*) { return std::make_unique<LoggingGemm>(log); }});
  const char* const expected[] = {"(sr)t(SR)", "(g)(g)", "(srg)t(SRg)", "(sgr)t(SgR)"};
  const auto outcomes = run_ranks({.ranks = 1, .mode = RankMode::threads}, [&](Transport& transport) {
    const MethodSettings settings;
    SharedMemory memory(transport, workload, {}, settings.deadline);
    std::vector<std::unique_ptr<Method>> methods;
    for (const MethodSpec& spec : specs)
      methods.push_back(spec.make(MethodContext{transport, workload, settings, memory}));
    for (std::size_t i = 0; i < methods.size(); ++i) {
      log.clear();
      methods[i]->dispatch();
      methods[i]->touch();
      methods[i]->combine();
      EXPECT_EQ(log, expected[i]) << specs[i].name;
    }
    // Work that differs has numbers of its own: a GPU replays it by them.
    EXPECT_EQ(step->phases, (std::vector<std::int32_t>{0, 1, 9, 9, 10, 11, 12, 13}));
    return 0;
  });
  EXPECT_EQ(combined_status(outcomes), 0);
}

TEST(GemmTest, ElementsAreEighthsAndTakeEveryValue) {
  std::set<float> seen;
  for (std::int64_t i = 0; i < 4096; ++i) {
    const float value = gemm_element(GemmInput::b, i);
    EXPECT_EQ(value * 8, static_cast<float>(static_cast<int>(value * 8)));
    seen.insert(value);
  }
  EXPECT_EQ(seen.size(), 16U);
}

TEST(GemmTest, NamesTheElementThatIsWrong) {
  const GemmShape shape{.m = 3, .n = 4, .k = 5, .dtype = DType::f32};
  const auto right = [&](std::int64_t row, std::int64_t column) {
    return static_cast<float>(gemm_result(shape, row, column));
  };
  EXPECT_EQ(check_gemm(shape, right), "");
  for (std::int64_t at = 0; at < shape.m * shape.n; ++at) {
    const std::string wrong = check_gemm(shape, [&](std::int64_t row, std::int64_t column) {
      return right(row, column) + (row * shape.n + column == at ? 0.25F : 0);
    });
    EXPECT_NE(wrong.find("in row " + std::to_string(at / 4) + ", column " + std::to_string(at % 4) + ","),
              std::string::npos)
        << wrong;
  }
  EXPECT_NE(check_gemm(shape, [](auto, auto) { return std::numeric_limits<float>::quiet_NaN(); }), "");
}

TEST(GemmTest, OnednnComputesWhatItShould) {
  if (const std::string reason = onednn_unavailable(); !reason.empty()) GTEST_SKIP() << reason;
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const GemmShape& shape : {GemmShape{1, 1, 1, dtype}, GemmShape{3, 17, 70, dtype},
                                   GemmShape{128, 64, 300, dtype}, GemmShape{5, 300, 2048, dtype}}) {
      std::unique_ptr<Gemm> gemm;
      try {
        gemm = make_onednn_gemm(shape, nullptr);
      } catch (const Error& error) {
        // Not every processor can do bfloat16.
        ASSERT_EQ(dtype, DType::bf16) << error.what();
        EXPECT_EQ(error.code(), Errc::unavailable);
        continue;
      }
      gemm->poison();
      EXPECT_NE(gemm->check(), "") << "it has not run";
      gemm->run();
      EXPECT_EQ(gemm->check(), "");
    }
}

}  // namespace
}  // namespace shunt::bench

#include <shunt/bench/pack_bench.h>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>

namespace shunt::bench {
namespace {

PackBenchOptions small() {
  PackBenchOptions options;
  options.device = "cpu";
  options.num_experts = 16;
  options.top_k = 4;
  options.hidden = 300;
  options.tokens = {1, 33};
  options.warmup = 1;
  options.iterations = 3;
  return options;
}

TEST(PackBenchTest, ChecksAndTimesEveryPhaseOnTheCpu) {
  for (const DType payload : {DType::bf16, DType::f8e4m3, DType::f8e5m2}) {
    for (const ScaleType scale : {ScaleType::f32, ScaleType::ue8m0}) {
      PackBenchOptions options = small();
      options.payload = payload;
      options.scale = scale;
      options.out_dtype = payload == DType::bf16 ? DType::f32 : DType::f16;
      options.routings = {"uniform", "powerlaw:1.5+mask:0.3"};
      const PackBenchReport report = run_pack_bench(options, {"test"}, {});
      EXPECT_EQ(report.device, "cpu");
      EXPECT_EQ(report.note, "");
      EXPECT_FALSE(report.failed);
      ASSERT_EQ(report.rows.size(), 2U * 2 * 6);
      const char* const phases[] = {"pack", "plan", "gather", "scatter", "combine", "copy"};
      for (std::size_t i = 0; i < report.rows.size(); ++i) {
        EXPECT_EQ(report.rows[i].phase, phases[i % 6]);
        EXPECT_EQ(report.rows[i].us.count, 3);
        EXPECT_TRUE(report.rows[i].correct) << report.rows[i].reason;
      }
    }
  }
}

TEST(PackBenchTest, CountsTheBytesOfAPhase) {
  PackBenchOptions options = small();
  options.tokens = {10};
  options.payload = DType::f8e4m3;
  const PackBenchReport report = run_pack_bench(options, {"test"}, {});
  const std::int64_t row = 300 + 3 * 4;  // elements, and a float for each 128 of them
  EXPECT_EQ(report.rows[2].bytes, 10 * 300 * 2 + 40 * row);
  EXPECT_EQ(report.rows[3].bytes, 2 * 40 * row);
  EXPECT_EQ(report.rows[4].bytes, 40 * 300 * 2 + 10 * 300 * 2 + 40 * 8);
  EXPECT_EQ(report.rows[5].bytes, 2 * 40 * 300);
}

TEST(PackBenchTest, FallsBackToTheCpuAndSaysWhy) {
  const std::string reason = cuda::unavailable_reason();
  if (reason.empty()) GTEST_SKIP() << "there is a CUDA device here";
  for (const char* device : {"cuda", "auto"}) {
    PackBenchOptions options = small();
    options.device = device;
    std::string text;
    const PackBenchReport report = run_pack_bench(
        options, {"test"}, {.text = [&](const std::string& part) { text += part; }, .progress = {}});
    EXPECT_EQ(report.device, "cpu");
    EXPECT_NE(text.find("CUDA kernels cannot run here (" + reason + "), so this is the CPU"),
              std::string::npos)
        << text;
  }
}

TEST(PackBenchTest, WritesRecords) {
  char folder[] = "/tmp/shunt-pack-XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  PackBenchOptions options = small();
  options.jsonl = std::string(folder) + "/pack.jsonl";
  EXPECT_FALSE(run_pack_bench(options, {"shunt", "bench", "pack"}, {}).failed);
  std::ifstream in(options.jsonl);
  std::set<std::string> phases;
  std::string line;
  ASSERT_TRUE(std::getline(in, line));
  EXPECT_EQ(nlohmann::json::parse(line).at("device"), "cpu");
  while (std::getline(in, line)) {
    const auto record = nlohmann::json::parse(line);
    EXPECT_EQ(record.at("bench"), "pack");
    EXPECT_EQ(record.at("correct"), true);
    phases.insert(record.at("phase").get<std::string>());
  }
  EXPECT_EQ(phases.size(), 6U);
  EXPECT_THROW(static_cast<void>(run_pack_bench(options, {}, {})), Error) << "nothing is overwritten";
  std::filesystem::remove_all(folder);
}

TEST(PackBenchTest, NamesAnOptionThatIsNotAllowed) {
  const auto refusal = [](const auto& change) -> std::string {
    PackBenchOptions options = small();
    change(options);
    try {
      static_cast<void>(run_pack_bench(options, {}, {}));
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::invalid_argument);
      return error.what();
    }
    return "nothing";
  };
  EXPECT_NE(refusal([](auto& o) { o.device = "gpu"; }).find("--device: \"gpu\""), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.in_dtype = DType::f8e4m3; }).find("--in-dtype"), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.payload = DType::f32; }).find("--payload is float32"), std::string::npos);
  EXPECT_NE(refusal([](auto& o) { o.top_k = 17; }).find("--topk is 17"), std::string::npos);
}

}  // namespace
}  // namespace shunt::bench

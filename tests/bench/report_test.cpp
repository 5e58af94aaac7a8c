#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/bench/report.h>

#include "points.h"

namespace shunt::bench {
namespace {

PhaseResult phase(const char* placement, const char* name, double us, std::int64_t rounds = 10) {
  PhaseResult result{.placement = placement, .phase = name, .rounds = rounds, .us = {}};
  const std::vector<double> samples{us};
  result.us = summarize(samples);
  return result;
}

MethodResult method(const char* name, MethodKind kind, double dispatch, double combine,
                    const char* placement = "same_l3") {
  MethodResult result;
  result.name = name;
  result.kind = kind;
  result.correct = true;
  result.result_hash = "00000000000000aa";
  result.phases = {phase(placement, "dispatch", dispatch), phase(placement, "touch", 1),
                   phase(placement, "combine", combine), phase(placement, "total", dispatch + 1 + combine)};
  return result;
}

PointResult small_result() {
  PointResult result;
  result.point = small_point();
  result.required_rounds = 10;
  result.sparse_bytes = 800;
  result.dense_bytes = 2400;
  result.dispatch_bytes = 1600;
  result.combine_bytes = 1600;
  result.methods.push_back(method("shunt", MethodKind::rows, 2, 3));
  result.methods.push_back(method("shunt/view", MethodKind::view, 1, 3));
  result.methods.push_back(method("simd/put", MethodKind::rows, 6, 5));
  MethodResult dense = method("dense", MethodKind::rows, 20, 20);
  for (const auto& [name, us] : {std::pair{"pack", 4.0}, {"exchange", 10.0}, {"unpack", 6.0}})
    dense.phases.push_back(phase("same_l3", name, us));
  result.methods.push_back(dense);
  for (const auto& [variant, us] : {std::pair{"push", 1.5}, {"pull", 0.5}}) {
    MethodResult copy;
    copy.name = "xcopy";
    copy.variant = variant;
    copy.kind = MethodKind::floor;
    copy.has_combine = false;
    copy.correct = true;
    copy.phases = {phase("same_l3", "dispatch", us), phase("same_l3", "touch", 1)};
    result.methods.push_back(copy);
  }
  MethodResult absent;
  absent.name = "torch";
  absent.status = "skipped";
  absent.reason = "this build has no libtorch method";
  result.methods.push_back(absent);
  return result;
}

std::vector<std::string> split(const std::string& line) {
  std::vector<std::string> parts;
  std::istringstream in(line);
  for (std::string part; std::getline(in, part, '\t');) parts.push_back(part);
  return parts;
}

TEST(TsvTest, KeepsTheOldColumnsInOrder) {
  const std::vector<PointResult> results{small_result()};
  std::istringstream in(format_tsv(results));
  std::string units;
  std::string header_line;
  std::string row_line;
  std::getline(in, units);
  std::getline(in, header_line);
  std::getline(in, row_line);
  EXPECT_EQ(units[0], '#');
  EXPECT_NE(units.find("microseconds"), std::string::npos);
  const std::vector<std::string> header = split(header_line);
  const std::vector<std::string> row = split(row_line);
  const std::vector<std::string> old{"E",
                                     "E/tok",
                                     "tok",
                                     "dim",
                                     "CPU+Torch_total",
                                     "CPU+Torch_lat",
                                     "CPU+Torch_bw",
                                     "CPU+Torch_comm",
                                     "CPU_pack",
                                     "CPU+NVSHMEM_total",
                                     "CPU+NVSHMEM_lat",
                                     "CPU+NVSHMEM_bw",
                                     "CPU+NVSHMEM_comm",
                                     "Dense_lat",
                                     "Dense_bw",
                                     "Sparse_bytes",
                                     "Dense_bytes",
                                     "CUDA+Torch_total",
                                     "CUDA+Torch_lat",
                                     "CUDA+Torch_bw",
                                     "CUDA+Torch_comm",
                                     "CUDA_pack",
                                     "CUDA+NVSHMEM_total",
                                     "CUDA+NVSHMEM_lat",
                                     "CUDA+NVSHMEM_bw",
                                     "CUDA+NVSHMEM_comm",
                                     "Speedup_Torch",
                                     "Speedup_NVSHMEM"};
  ASSERT_EQ(old.size(), 28U);
  ASSERT_GE(header.size(), old.size());
  EXPECT_EQ(std::vector<std::string>(header.begin(), header.begin() + 28), old);
  ASSERT_EQ(row.size(), header.size());
  const auto at = [&](const std::string& name) {
    return row[static_cast<std::size_t>(std::find(header.begin(), header.end(), name) - header.begin())];
  };
  EXPECT_EQ(at("E"), "6");
  EXPECT_EQ(at("dim"), "40");
  EXPECT_EQ(at("CPU+Torch_total"), "NA");
  EXPECT_EQ(at("Speedup_Torch"), "NA");
  EXPECT_EQ(at("Dense_lat"), "16.000");  // exchange + unpack
  EXPECT_EQ(at("Dense_bw"), "0.050");    // 800 bytes in 16 us
  EXPECT_EQ(at("Sparse_bytes"), "800");
  EXPECT_EQ(at("Dense_bytes"), "2400");
  EXPECT_EQ(at("shunt_total_us"), "6.000");
  EXPECT_EQ(at("shunt_view_dispatch_us"), "1.000");
  EXPECT_EQ(at("xcopy_dispatch_us"), "0.500");
  EXPECT_EQ(at("torch_total_us"), "NA");
  EXPECT_EQ(at("shunt_rounds"), "10");
}

TEST(RecordsTest, HoldEveryKeyOfTheFormat) {
  const std::vector<Record> records = result_records(small_result());
  ASSERT_FALSE(records.empty());
  for (const Record& record : records)
    for (const char* key :
         {"record",  "bench",     "method",          "phase",     "status",    "reason",
          "correct", "transport", "ranks",           "nodes",     "dp_size",   "experts",
          "topk",    "hidden",    "tokens_per_rank", "in_dtype",  "out_dtype", "routing",
          "seed",    "placement", "rounds",          "median_us", "p90_us",    "p99_us",
          "min_us",  "max_us",    "samples",         "bytes",     "gb_per_s",  "result_hash"})
      EXPECT_NE(record.find(key), nullptr) << key << " in " << record.to_json();
  EXPECT_NE(
      records.front().to_json().find(R"("method":"shunt","variant":"","phase":"dispatch","status":"ok")"),
      std::string::npos)
      << records.front().to_json();
  EXPECT_NE(records.back().to_json().find(R"("status":"skipped")"), std::string::npos);
}

TEST(RecordsTest, HoldOneSkippedRecordWhereNoBlockWasKept) {
  PointResult result = small_result();
  result.methods[0].phases = {phase("same_l3", "route", 1)};  // an inner phase has blocks of its own
  result.methods[1].phases.clear();
  std::vector<std::string> lines;
  for (const Record& record : result_records(result))
    if (const std::string line = record.to_json(); line.find("\"method\":\"shunt") != std::string::npos)
      lines.push_back(line);
  ASSERT_EQ(lines.size(), 2U);
  for (const std::string& line : lines) {
    EXPECT_NE(line.find(R"("phase":"total","status":"skipped","reason":"no block kept")"), std::string::npos)
        << line;
    EXPECT_NE(line.find(R"("median_us":null)"), std::string::npos) << line;
  }
}

TEST(ConclusionTest, NamesTheFastestWithItsLeadAndTheFloor) {
  std::vector<PointResult> results{small_result()};
  MethodResult reduce = method("reduce", MethodKind::floor, 0, 2);
  reduce.has_dispatch = false;
  results[0].methods.push_back(reduce);
  const std::string text = format_conclusion(results);
  EXPECT_NE(
      text.find(
          "the fastest method that delivers rows is shunt, 2.00 times faster than the next best (simd/put)"),
      std::string::npos)
      << text;
  EXPECT_NE(text.find("2.00 times the floor"), std::string::npos) << text;  // (2 + 3) / (0.5 + 2)
  EXPECT_NE(text.find("use shunt/view"), std::string::npos) << text;
}

TEST(ConclusionTest, CallsItAHintWithTooFewRounds) {
  std::vector<PointResult> results{small_result()};
  results[0].required_rounds = 11;
  EXPECT_NE(format_conclusion(results).find("no class had the 11 rounds that a comparison needs"),
            std::string::npos);
}

TEST(ConclusionTest, SaysWhichTokenCountsLackRounds) {
  std::vector<PointResult> results(3, small_result());
  results[1].point.tokens = 16;
  results[2].point.tokens = 32;
  EXPECT_NE(format_conclusion(results).find("shunt (at all 3 token counts)"), std::string::npos);
  for (std::size_t i = 1; i < 3; ++i)
    for (MethodResult& one : results[i].methods)
      for (PhaseResult& part : one.phases) part.rounds = 9;
  const std::string text = format_conclusion(results);
  EXPECT_NE(text.find("shunt (at 1 of 3 token counts; too few rounds at 16, 32), 2.00 times faster"),
            std::string::npos)
      << text;
}

TEST(ConclusionTest, ShowsNoLeadWhereIntervalsOverlap) {
  std::vector<PointResult> results(2, small_result());
  results[1].point.tokens = 16;
  const auto total_of = [&](std::size_t point, std::size_t method) -> SampleSummary& {
    return results[point].methods[method].phases[3].us;
  };
  total_of(1, 0).median_high = 9;
  total_of(1, 2).median_low = 8;
  const std::string some = format_conclusion(results);
  EXPECT_NE(some.find("2.00 times faster than the next best (simd/put), no difference shown at 16 tokens"),
            std::string::npos)
      << some;
  total_of(0, 0).median_high = 8;
  total_of(0, 2).median_low = 8;
  const std::string none = format_conclusion(results);
  EXPECT_NE(none.find("but no difference to the next best (simd/put) is shown"), std::string::npos) << none;
  EXPECT_EQ(none.find("times faster than"), std::string::npos) << none;
}

TEST(TableTest, ShowsFloorsUnseenClassesAndFailures) {
  PointResult result = small_result();
  result.methods[2].status = "failed";
  result.methods[2].reason = "rank 1, row 3 differs from its token";
  const std::string text = format_point(result);
  EXPECT_NE(text.find("xcopy (pull)"), std::string::npos) << text;
  EXPECT_EQ(text.find("xcopy (push)"), std::string::npos) << text;
  EXPECT_NE(text.find("far not seen"), std::string::npos) << text;
  EXPECT_NE(text.find("simd/put failed: rank 1, row 3"), std::string::npos) << text;
}

TEST(PointResultTest, PrefersTheClassWithEnoughRounds) {
  PointResult result = small_result();
  MethodResult& shunt = result.methods[0];
  shunt.phases.push_back(phase("near", "total", 1, 3));
  EXPECT_EQ(result.main_placement(), "same_l3");
  EXPECT_EQ(result.placements(), (std::vector<std::string>{"near", "same_l3"}));
}

TEST(ResultCodecTest, BringsBackWhatWasEncoded) {
  const PointResult result = small_result();
  const std::string bytes = encode_result(result);
  const PointResult back = decode_result(bytes, result.point);
  ASSERT_EQ(back.methods.size(), result.methods.size());
  EXPECT_EQ(back.methods[3].phases.size(), result.methods[3].phases.size());
  EXPECT_EQ(back.methods[3].phases[6].phase, "unpack");
  EXPECT_EQ(back.methods[3].phases[6].us.median, 6);
  EXPECT_EQ(back.methods.back().reason, result.methods.back().reason);
  EXPECT_EQ(encode_result(back), bytes);
  EXPECT_ANY_THROW(static_cast<void>(decode_result(bytes.substr(0, bytes.size() - 3), result.point)));
}

}  // namespace
}  // namespace shunt::bench

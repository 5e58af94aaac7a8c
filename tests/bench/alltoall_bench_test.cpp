#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/core/error.h>
#include <shunt/layout/slots.h>

namespace shunt::bench {
namespace {

AllToAllBenchOptions small_options() {
  AllToAllBenchOptions options;
  options.num_experts = 7;
  options.top_k = 3;
  options.hidden = 130;
  options.tokens = {6};
  options.rounds = 1;
  options.iterations = 2;
  options.max_seconds = 2;
  options.write_files = false;
  return options;
}

PointResult run_one(const AllToAllBenchOptions& options) {
  AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
  EXPECT_EQ(report.points.size(), 1U);
  return report.points.at(0);
}

/// Hashes of all methods that combine; every method that this build has must have run and be right.
std::set<std::string> hashes_of(const PointResult& result) {
  std::set<std::string> hashes;
  for (const MethodResult& method : result.methods) {
    if (method.reason.starts_with("this build has no")) continue;
    if (method.reason.starts_with("one node: ") || method.variant.starts_with("put")) {
      EXPECT_EQ(method.status, "skipped") << method.name << " " << method.variant;
      continue;
    }
    EXPECT_EQ(method.status, "ok") << method.name << ": " << method.reason;
    EXPECT_TRUE(method.correct) << method.name;
    if (!method.result_hash.empty()) hashes.insert(method.result_hash);
  }
  return hashes;
}

TEST(AllToAllBenchTest, GivesTheSameBitsByEveryMethodAndRankMode) {
  AllToAllBenchOptions options = small_options();
  const std::set<std::string> by_processes = hashes_of(run_one(options));
  EXPECT_EQ(by_processes.size(), 1U);
  options.mode = RankMode::threads;
  EXPECT_EQ(hashes_of(run_one(options)), by_processes);
}

TEST(AllToAllBenchTest, IsRightForHardShapes) {
  const std::vector<std::function<void(AllToAllBenchOptions&)>> shapes{
      [](auto& o) { o.ranks = 4, o.dp_size = 2; },
      [](auto& o) { o.ranks = 3, o.routings = {"uniform+mask:0.3+uneven"}; },
      [](auto& o) { o.in_dtype = DType::f8e4m3; },
      [](auto& o) { o.in_dtype = DType::f8e5m2, o.out_dtype = DType::f32, o.hidden = 257; },
      [](auto& o) { o.in_dtype = DType::f16, o.out_dtype = DType::f16, o.layout = RowLayout::padded; },
      [](auto& o) { o.alignment = 8, o.routings = {"one"}; },
      [](auto& o) { o.ranks = 1; },
      [](auto& o) { o.ranks = 3, o.num_experts = 2, o.top_k = 2; },
  };
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    SCOPED_TRACE(i);
    AllToAllBenchOptions options = small_options();
    shapes[i](options);
    EXPECT_EQ(hashes_of(run_one(options)).size(), 1U);
  }
}

TEST(AllToAllBenchTest, RunsTheWaysOfANetworkOnOneNodeOnlyWhereTheyAreNamed) {
  AllToAllBenchOptions options = small_options();
  options.methods = {"shunt", "shunt/flat", "shunt/hier"};
  const PointResult result = run_one(options);
  ASSERT_EQ(result.methods.size(), 3U);
  EXPECT_EQ(hashes_of(result).size(), 1U);
  EXPECT_EQ(result.nodes, 1);
  EXPECT_EQ(result.transport, "shm");
  EXPECT_EQ(result.clock, "common");
  for (const MethodResult& method : result.methods) {
    EXPECT_EQ(method.crossing.row_bytes, 0) << method.name << ": all memory can be loaded";
    EXPECT_EQ(method.crossing.counted_row_bytes, 0);
  }
}

TEST(AllToAllBenchTest, MeasuresEveryPhaseOfAMethod) {
  AllToAllBenchOptions options = small_options();
  options.methods = {"shunt", "simd/put", "reduce"};
  options.max_seconds = 20;
  const PointResult result = run_one(options);
  const std::string placement = result.main_placement();
  ASSERT_FALSE(placement.empty());
  ASSERT_EQ(result.methods.size(), 3U);
  for (const char* phase : {"dispatch", "touch", "combine", "total", "route", "pack", "exchange", "unpack",
                            "combine_pack", "combine_exchange", "reduce"}) {
    const auto found = std::find_if(result.methods.begin(), result.methods.end(),
                                    [](const MethodResult& method) { return method.name == "simd/put"; });
    EXPECT_NE(found->find(placement, phase), nullptr) << phase;
  }
  const MethodResult* reduce = result.best("reduce", placement);
  ASSERT_NE(reduce, nullptr);
  EXPECT_EQ(reduce->find(placement, "dispatch"), nullptr);
  EXPECT_GT(result.methods[0].cold_us[3], 0);
}

/// Wraps the library's method and spoils one thing.
class SpoiledMethod final : public Method {
 public:
  SpoiledMethod(std::unique_ptr<Method> inner, std::int32_t rank, bool rows, int from_step)
      : inner_method_(std::move(inner)), rank_(rank), rows_(rows), from_step_(from_step) {}
  void dispatch() override { inner_method_->dispatch(); }
  void touch() override { inner_method_->touch(); }
  void combine() override {
    inner_method_->combine();
    ++steps_;
    if (rank_ == 1 && !rows_ && steps_ >= from_step_)
      const_cast<std::byte*>(inner_method_->combined())[1] ^= std::byte{0x40};
  }
  [[nodiscard]] ArrivedRows arrived() const override {
    ArrivedRows rows = inner_method_->arrived();
    if (rank_ == 1 && rows_) std::swap(rows.rows.front(), rows.rows.back());
    return rows;
  }
  [[nodiscard]] const std::byte* combined() const override { return inner_method_->combined(); }
  void poison() override { inner_method_->poison(); }

 private:
  std::unique_ptr<Method> inner_method_;
  std::int32_t rank_;
  bool rows_;
  int from_step_;
  int steps_ = 0;
};

MethodSpec spoiled(bool rows, int from_step) {
  MethodSpec spec = alltoall_methods().front();
  spec.name = "spoiled";
  spec.make = [make = spec.make, rows, from_step](const MethodContext& context) {
    return std::make_unique<SpoiledMethod>(make(context), context.transport.world().rank, rows, from_step);
  };
  return spec;
}

TEST(AllToAllBenchTest, CatchesAMethodThatDeliversWrongData) {
  for (const auto& [rows, from_step] : {std::pair{true, 1}, {false, 1}, {false, 2}}) {
    AllToAllBenchOptions options = small_options();
    options.registry.push_back(spoiled(rows, from_step));
    const AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
    EXPECT_TRUE(report.failed);
    for (const MethodResult& method : report.points.at(0).methods) {
      if (method.name != "spoiled") {
        EXPECT_NE(method.status, "failed") << method.name << ": " << method.reason;
        continue;
      }
      EXPECT_EQ(method.status, "failed");
      EXPECT_FALSE(method.correct);
      EXPECT_NE(method.reason.find("rank 1"), std::string::npos) << method.reason;
    }
  }
}

TEST(AllToAllBenchTest, SkipsWhatDoesNotFitAndNamesWhatReducesIt) {
  AllToAllBenchOptions options = small_options();
  options.registry = {alltoall_methods()[0], alltoall_methods()[1]};
  options.registry[1].own_bytes = [](const Workload&, const MethodSettings&) {
    return std::int64_t{1} << 50;
  };
  const PointResult result = run_one(options);
  EXPECT_EQ(result.methods[0].status, "ok");
  EXPECT_EQ(result.methods[1].status, "skipped");
  EXPECT_NE(result.methods[1].reason.find("PiB"), std::string::npos) << result.methods[1].reason;
  options.registry.erase(options.registry.begin());
  try {
    static_cast<void>(run_alltoall_bench(options, {"test"}, {}));
    FAIL() << "nothing fits, yet it ran";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::out_of_memory);
    EXPECT_NE(std::string(error.what()).find("--max-recv-rows"), std::string::npos) << error.what();
  }
}

TEST(AllToAllBenchTest, ReportsOverflowAsTheUsersToMend) {
  AllToAllBenchOptions options = small_options();
  options.max_recv_rows = 1;
  options.methods = {"shunt"};
  try {
    static_cast<void>(run_alltoall_bench(options, {"test"}, {}));
    FAIL() << "one row cannot be enough";
  } catch (const RankFailure& failure) {
    EXPECT_EQ(failure.status(), 2);
  }
}

}  // namespace
}  // namespace shunt::bench

#include <algorithm>
#include <functional>
#include <memory>
#include <set>
#include <string>

#include <gtest/gtest.h>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/core/error.h>
#include <shunt/layout/slots.h>
#include <shunt/transport/wrap.h>

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
  options.max_seconds = 20;
  options.write_files = false;
  return options;
}

PointResult run_one(const AllToAllBenchOptions& options) {
  AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
  EXPECT_EQ(report.points.size(), 1U);
  return report.points.at(0);
}

/// Left out because of this build or of how the test was started.
bool is_absent(const MethodResult& method) {
  if (method.status != "skipped") return false;
  for (const char* reason : {"this build has no", "opens sockets", "needs an MPI launcher"})
    if (method.reason.starts_with(reason)) return true;
  return false;
}

/// Hashes of all methods that combine; every method that this build has must have run and be right.
std::set<std::string> hashes_of(const PointResult& result) {
  std::set<std::string> hashes;
  for (const MethodResult& method : result.methods) {
    if (is_absent(method)) continue;
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
  options.methods = {"shunt", "shunt/flat", "shunt/hier", "shunt/presum"};
  const PointResult result = run_one(options);
  ASSERT_EQ(result.methods.size(), 4U);
  EXPECT_EQ(hashes_of(result).size(), 1U) << "nothing crosses, so nothing is summed before it does";
  EXPECT_EQ(result.nodes, 1);
  EXPECT_EQ(result.transport, "shm");
  EXPECT_EQ(result.clock, "common");
  for (const MethodResult& method : result.methods) {
    EXPECT_EQ(method.crossing.row_bytes, 0) << method.name << ": all memory can be loaded";
    EXPECT_EQ(method.crossing.counted_row_bytes, 0);
  }
}

/// Ranks of `nodes` nodes that reach each other's memory within a node only.
AllToAllBenchOptions cluster_options(std::int32_t ranks, std::int32_t nodes) {
  AllToAllBenchOptions options = small_options();
  options.ranks = ranks;
  options.nodes = nodes;
  options.transport = "shm";
  options.num_experts = 16;
  options.top_k = 6;
  options.tokens = {9};
  options.wrap = [](Transport& transport) {
    return make_delayed(transport, {.probability = 0.1, .hide_other_nodes = true});
  };
  return options;
}

TEST(AllToAllBenchTest, CountsWhatCrossesBetweenNodesToTheByte) {
  const std::vector<std::function<void(AllToAllBenchOptions&)>> shapes{
      [](auto&) {},
      [](auto& o) { o.dp_size = 2; },
      [](auto& o) { o.in_dtype = DType::f8e4m3; },
      [](auto& o) { o.num_experts = 3, o.top_k = 3; },
      [](auto& o) { o.routings = {"uniform+mask:0.4+uneven"}; },
      [](auto& o) { o.layout = RowLayout::padded, o.alignment = 8; },
  };
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    SCOPED_TRACE(i);
    AllToAllBenchOptions options = cluster_options(4, 2);
    shapes[i](options);
    const PointResult result = run_one(options);
    EXPECT_EQ(result.nodes, 2);
    std::set<std::string> hashes;
    const MethodResult* flat = nullptr;
    const MethodResult* hier = nullptr;
    const MethodResult* presum = nullptr;
    for (const MethodResult& method : result.methods) {
      if (method.name == "shunt/presum") {
        presum = &method;  // rounds otherwise than all others; looked at below
        continue;
      }
      if (method.status == "skipped") {
        EXPECT_TRUE(is_absent(method) || method.name == "xcopy") << method.name << ": " << method.reason;
        continue;
      }
      EXPECT_EQ(method.status, "ok") << method.name << " " << method.variant << ": " << method.reason;
      EXPECT_TRUE(method.correct) << method.name;
      if (!method.result_hash.empty()) hashes.insert(method.result_hash);
      if (method.name == "shunt/flat") flat = &method;
      if (method.name == "shunt/hier") hier = &method;
      if (method.name == "xcopy") {
        EXPECT_TRUE(method.variant.starts_with("put")) << method.variant;
      }
    }
    EXPECT_EQ(hashes.size(), 1U);
    ASSERT_NE(flat, nullptr);
    ASSERT_NE(hier, nullptr);
    EXPECT_GT(hier->crossing.row_bytes, 0);
    EXPECT_EQ(hier->crossing.row_bytes, hier->crossing.counted_row_bytes);
    EXPECT_EQ(flat->crossing.row_bytes, flat->crossing.counted_row_bytes);
    EXPECT_LE(hier->crossing.row_bytes, flat->crossing.row_bytes);
    EXPECT_EQ(hier->crossing.uniform_row_bytes > 0, options.routings[0] == "uniform");
    ASSERT_NE(presum, nullptr);
    if (options.dp_size > 1) {
      EXPECT_EQ(presum->status, "skipped");
      EXPECT_EQ(presum->reason, "partial sums are for --dp-size 1, not 2");
      continue;
    }
    EXPECT_EQ(flat->crossing.result_bytes, flat->crossing.counted_result_bytes);
    EXPECT_EQ(presum->status, "ok") << presum->reason;
    EXPECT_TRUE(presum->correct);
    EXPECT_EQ(presum->crossing.row_bytes, hier->crossing.row_bytes) << "rows go out as by shunt/hier";
    EXPECT_EQ(presum->crossing.result_bytes, presum->crossing.counted_result_bytes);
    const Workload workload(result.point, nullptr);
    EXPECT_EQ(presum->crossing.result_bytes / workload.out_row_bytes(),
              presum->crossing.row_bytes / (workload.row_bytes() + workload.scale_bytes()))
        << "one row comes back for each that crossed";
    EXPECT_LT(presum->crossing.result_bytes, hier->crossing.result_bytes);
    EXPECT_FALSE(hashes.contains(presum->result_hash)) << "partial sums that were not rounded";
  }
}

TEST(AllToAllBenchTest, CallsThePlacementOfRanksOnTwoNodesANetwork) {
  AllToAllBenchOptions options = cluster_options(2, 2);
  options.methods = {"shunt", "xcopy"};
  EXPECT_EQ(run_one(options).placements(), (std::vector<std::string>{"network"}));
  options = cluster_options(4, 2);
  options.methods = {"shunt"};
  const std::vector<std::string> seen = run_one(options).placements();
  EXPECT_EQ(std::count(seen.begin(), seen.end(), "network"), 0) << "ranks 0 and 1 share a node";
}

TEST(AllToAllBenchTest, FailsAMethodThatMovesMoreThanItsPathAsksFor) {
  AllToAllBenchOptions options = cluster_options(4, 2);
  options.methods = {"shunt/flat"};
  for (MethodSpec& spec : options.registry)
    if (spec.name == "shunt/flat") spec.crossing = CrossingPath::nodes;
  const AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
  EXPECT_TRUE(report.failed);
  EXPECT_EQ(report.status, exit_status(Errc::check_failed));
  const std::string& reason = report.points.at(0).methods.at(0).reason;
  EXPECT_NE(reason.find("bytes of rows crossed"), std::string::npos) << reason;
}

TEST(AllToAllBenchTest, FailsPartialSumsWhereEveryResultIsToComeBack) {
  AllToAllBenchOptions options = cluster_options(4, 2);
  options.methods = {"shunt/presum"};
  for (MethodSpec& spec : options.registry)
    if (spec.name == "shunt/presum") spec.presum = false;
  const AllToAllBenchReport report = run_alltoall_bench(options, {"test"}, {});
  EXPECT_TRUE(report.failed);
  const std::string& reason = report.points.at(0).methods.at(0).reason;
  EXPECT_NE(reason.find("bytes of results crossed"), std::string::npos) << reason;
}

TEST(AllToAllBenchTest, SkipsEverywhereWhatOneRankCannotRun) {
  AllToAllBenchOptions options = small_options();
  options.methods = {"shunt", "shunt/view", "simd/put"};
  for (MethodSpec& spec : options.registry) {
    if (spec.name == "shunt/view")
      spec.unsuited = [](const Transport& transport) -> std::string {
        return transport.world().rank == 1 ? "not on rank 1" : "";
      };
    if (spec.name == "simd/put")
      spec.make = [make = spec.make](const MethodContext& context) {
        if (context.transport.world().rank == 0) throw Error(Errc::unavailable, "rank 0 has no such helper");
        return make(context);
      };
  }
  const PointResult result = run_one(options);
  ASSERT_EQ(result.methods.size(), 3U);
  EXPECT_EQ(result.methods[0].status, "ok") << result.methods[0].reason;
  EXPECT_EQ(result.methods[1].status, "skipped");
  EXPECT_EQ(result.methods[1].reason, "not on rank 1");
  EXPECT_EQ(result.methods[2].status, "skipped");
  EXPECT_EQ(result.methods[2].reason, "rank 0 has no such helper");
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

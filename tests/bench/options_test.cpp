#include <algorithm>
#include <functional>
#include <string>

#include <gtest/gtest.h>

#include <shunt/bench/options.h>
#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(exit_status(error.code()), 2);
    return error.what();
  }
  return "no error";
}

AllToAllBenchOptions small_options() {
  AllToAllBenchOptions options;
  options.num_experts = 8;
  options.top_k = 2;
  options.hidden = 64;
  return options;
}

TEST(BenchOptionsTest, ReadsTokenCounts) {
  EXPECT_EQ(parse_token_counts("1,4,8192"), (std::vector<std::int64_t>{1, 4, 8192}));
}

TEST(BenchOptionsTest, SaysWhatTokenCountsAreAllowed) {
  for (const char* wrong : {"0x", "0", "8193", "-1", "4,", ",4", "", "4 ", "1e2", "99999999999999999999"}) {
    const std::string message = message_of([&] { static_cast<void>(parse_token_counts(wrong)); });
    EXPECT_NE(message.find("allowed: "), std::string::npos) << wrong << ": " << message;
    EXPECT_NE(message.find("--tokens"), std::string::npos) << message;
  }
}

TEST(BenchOptionsTest, DefaultsToBothModelsAndSevenTokenCounts) {
  AllToAllBenchOptions options;
  const std::vector<Point> points = expand_points(options, nullptr, 0);
  ASSERT_EQ(points.size(), 14U);
  EXPECT_EQ(points[0].preset, "v2-lite");
  EXPECT_EQ(points[0].num_experts, 64);
  EXPECT_EQ(points[0].top_k, 6);
  EXPECT_EQ(points[0].hidden, 2048);
  EXPECT_EQ(points[13].num_experts, 256);
  EXPECT_EQ(points[13].top_k, 8);
  EXPECT_EQ(points[13].hidden, 7168);
  EXPECT_EQ(points[13].tokens, 128);
  EXPECT_EQ(points[0].ranks, 2);
}

TEST(BenchOptionsTest, RefusesWhatCannotBeWithTheRange) {
  const std::vector<std::pair<std::function<void(AllToAllBenchOptions&)>, const char*>> cases{
      {[](auto& o) { o.top_k = 9; }, "1 to the number of experts, 8"},
      {[](auto& o) { o.ranks = 3, o.dp_size = 2; }, "a divisor of the number of ranks, 3"},
      {[](auto& o) { o.out_dtype = DType::f8e4m3; }, "bfloat16, float16, float32"},
      {[](auto& o) { o.hidden = 0; }, "--experts, --topk and --hidden"},
      {[](auto& o) { o.transport = "smoke"; }, "allowed: auto, shm"},
      {[](auto& o) { o.ranks = 4, o.nodes = 3; },
       "--nodes is 3; allowed: a divisor of the number of ranks, 4"},
      {[](auto& o) { o.layout = RowLayout::padded, o.max_recv_rows = 5; }, "with --layout packed only"},
      {[](auto& o) { o.routings = {"sideways"}; }, "uniform"},
  };
  for (const auto& [spoil, expected] : cases) {
    AllToAllBenchOptions options = small_options();
    spoil(options);
    const std::string message = message_of([&] { static_cast<void>(expand_points(options, nullptr, 0)); });
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
}

TEST(BenchOptionsTest, TakesRanksFromTheJobUnlessTheyAreGiven) {
  AllToAllBenchOptions options = small_options();
  EXPECT_EQ(expand_points(options, nullptr, 4).front().ranks, 4);
  EXPECT_EQ(options.ranks, 4);
  options = small_options();
  options.ranks = 3;
  EXPECT_EQ(expand_points(options, nullptr, 4).front().ranks, 3) << "--ranks wins over the job";
}

TEST(BenchOptionsTest, SelectsMethodsByNameWithAllVariants) {
  AllToAllBenchOptions options;
  options.methods = {"xcopy", "shunt"};
  const std::vector<MethodSpec> specs = select_methods(options);
  EXPECT_EQ(specs.size(), 7U);
  for (const MethodSpec& spec : specs) EXPECT_TRUE(spec.asked_for) << spec.name;
  options.methods = {"shnt"};
  const std::string message = message_of([&] { static_cast<void>(select_methods(options)); });
  EXPECT_NE(message.find("shunt/view"), std::string::npos) << message;
}

TEST(BenchOptionsTest, ListsEveryMethodOfTheArchitecture) {
  const std::vector<MethodSpec> specs = alltoall_methods();
  for (const char* name :
       {"scalar/alltoallv", "scalar/put",   "simd/alltoallv", "simd/put", "dense",       "simd/mpi",
        "simd/mpi-dedup",   "simd/gloo",    "torch",          "cpu/nccl", "cpu/nvshmem", "cuda/nccl",
        "cuda/nvshmem",     "dense/nccl",   "dense/nvshmem",  "shunt",    "shunt/view",  "shunt/flat",
        "shunt/hier",       "shunt/presum", "xcopy",          "reduce",   "empty",       "memcpy"}) {
    const auto found =
        std::find_if(specs.begin(), specs.end(), [&](const MethodSpec& spec) { return spec.name == name; });
    ASSERT_NE(found, specs.end()) << name;
    EXPECT_NE(found->unavailable.empty(), !found->make) << name << ": either it runs or it says why not";
  }
}

}  // namespace
}  // namespace shunt::bench

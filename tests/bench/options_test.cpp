#include <algorithm>
#include <functional>
#include <map>
#include <string>

#include <gtest/gtest.h>

#include <shunt/bench/options.h>
#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

const char* nothing(const char*) {
  return nullptr;
}

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
  const std::vector<Point> points = expand_points(options, nullptr, nothing);
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
      {[](auto& o) { o.transport = "smoke"; }, "allowed: shm"},
      {[](auto& o) { o.layout = RowLayout::padded, o.max_recv_rows = 5; }, "with --layout packed only"},
      {[](auto& o) { o.routings = {"sideways"}; }, "uniform"},
  };
  for (const auto& [spoil, expected] : cases) {
    AllToAllBenchOptions options = small_options();
    spoil(options);
    const std::string message =
        message_of([&] { static_cast<void>(expand_points(options, nullptr, nothing)); });
    EXPECT_NE(message.find(expected), std::string::npos) << message;
  }
}

TEST(BenchOptionsTest, TakesRanksOfOneNodeFromTheEnvironmentAndRefusesTwoNodes) {
  std::map<std::string, std::string> variables{{"MASTER_ADDR", "node0"},
                                               {"MASTER_PORT", "29500"},
                                               {"WORLD_SIZE", "4"},
                                               {"WORLD_LOCAL_SIZE", "4"},
                                               {"NODE_RANK", "0"}};
  const auto get = [&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  };
  AllToAllBenchOptions options = small_options();
  EXPECT_EQ(expand_points(options, nullptr, get).front().ranks, 4);
  variables["WORLD_SIZE"] = "8";
  options = small_options();
  const std::string message = message_of([&] { static_cast<void>(expand_points(options, nullptr, get)); });
  EXPECT_NE(message.find("needs a network transport"), std::string::npos) << message;
  options = small_options();
  options.ranks = 3;
  EXPECT_EQ(expand_points(options, nullptr, get).front().ranks, 3) << "--ranks wins over the environment";
  variables.erase("MASTER_PORT");
  EXPECT_EQ(expand_points(options, nullptr, get).front().ranks, 3) << "which may then be incomplete";
}

TEST(BenchOptionsTest, SelectsMethodsByNameWithAllVariants) {
  AllToAllBenchOptions options;
  options.methods = {"xcopy", "shunt"};
  const std::vector<MethodSpec> specs = select_methods(options);
  EXPECT_EQ(specs.size(), 5U);
  options.methods = {"shnt"};
  const std::string message = message_of([&] { static_cast<void>(select_methods(options)); });
  EXPECT_NE(message.find("shunt/view"), std::string::npos) << message;
}

TEST(BenchOptionsTest, ListsEveryMethodOfTheArchitecture) {
  const std::vector<MethodSpec> specs = alltoall_methods();
  for (const char* name :
       {"scalar/alltoallv", "scalar/put", "simd/alltoallv", "simd/put", "dense",       "simd/mpi",
        "simd/mpi-dedup",   "simd/gloo",  "torch",          "cpu/nccl", "cpu/nvshmem", "cuda/nccl",
        "cuda/nvshmem",     "dense/nccl", "dense/nvshmem",  "shunt",    "shunt/view",  "shunt/flat",
        "shunt/hier",       "xcopy",      "reduce",         "empty",    "memcpy"}) {
    const auto found =
        std::find_if(specs.begin(), specs.end(), [&](const MethodSpec& spec) { return spec.name == name; });
    ASSERT_NE(found, specs.end()) << name;
    EXPECT_NE(found->unavailable.empty(), !found->make) << name << ": either it runs or it says why not";
  }
}

}  // namespace
}  // namespace shunt::bench

#include <shunt/cluster/machine.h>

#include <cmath>

#include <gtest/gtest.h>

#include <shunt/cluster/roofline.h>
#include <shunt/core/error.h>

namespace shunt {
namespace {

Machine machine(const std::string& node, std::int64_t hosts, double oversubscription = 1,
                std::int64_t pod = 0) {
  MachineOptions options;
  options.hosts = hosts;
  options.oversubscription = oversubscription;
  options.pod_gpus = pod;
  return make_machine(find_node(node, "presets/hardware"), options);
}

template <class Body>
void expect_refused(const std::string& part, Body&& body) {
  try {
    body();
    ADD_FAILURE() << "no error; expected: " << part;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(MachineTest, PlacesGroupsInDomains) {
  const Machine dgx = machine("dgx-h100", 4);
  EXPECT_EQ(dgx.gpus(), 32);
  EXPECT_EQ(place_group(dgx, 8, 1).domains, 1);
  EXPECT_EQ(place_group(dgx, 8, 1).tier(dgx), Tier::scale_up);
  const Group wide = place_group(dgx, 32, 1);
  EXPECT_EQ(wide.near, 8);
  EXPECT_EQ(wide.domains, 4);
  EXPECT_EQ(wide.tier(dgx), Tier::network);
  // Every eighth GPU: one on each host.
  EXPECT_EQ(place_group(dgx, 4, 8).near, 1);
  EXPECT_EQ(place_group(dgx, 4, 2).domains, 1);
  // 18 hosts of 4 are one domain.
  const Machine rack = machine("gb200-nvl72", 18);
  EXPECT_EQ(place_group(rack, 72, 1).domains, 1);
  const Machine pods = machine("dgx-h100", 8, 2, 32);
  EXPECT_EQ(place_group(pods, 64, 1).tier(pods), Tier::spine);
  EXPECT_EQ(place_group(pods, 32, 1).tier(pods), Tier::network);
}

TEST(MachineTest, PricesCollectivesByTheirSlowestTier) {
  const Machine dgx = machine("dgx-h100", 4);
  const Group near = place_group(dgx, 8, 1);
  const Group far = place_group(dgx, 32, 1);
  // 1 GB, eight ranks: 2 * 7/8 GB over 370.8 GB/s.
  EXPECT_NEAR(all_reduce_us(dgx, near, 1e9), 2 * 0.875 * 1e9 / 370.8e3, 100);
  EXPECT_NEAR(all_gather_us(dgx, near, 1e9), 0.875 * 1e9 / 370.8e3, 100);
  // A short message takes LL, which gets half of the rate (tuning.cc): 7 steps of 0.6 us.
  EXPECT_NEAR(all_gather_us(dgx, near, 65536), 6.6 + 7 * 0.6 + 0.875 * 65536 / (0.5 * 370.8e3), 1e-6);
  // All eight NICs of a host serve the ring: 8 * 48.5 is more than NVLink.
  EXPECT_NEAR(all_gather_us(dgx, far, 1e9) / (31.0 / 32 * 1e9 / 370.8e3), 1, 0.1);
  // One rank on each host has one NIC.
  EXPECT_NEAR(all_gather_us(dgx, place_group(dgx, 4, 8), 1e9), 0.75 * 1e9 / 48.5e3, 200);
  EXPECT_EQ(all_reduce_us(dgx, place_group(dgx, 1, 1), 1e9), 0);
  EXPECT_GT(all_reduce_us(dgx, far, 8), all_reduce_us(dgx, near, 8));
  expect_refused("bytes", [&] { (void)all_reduce_us(dgx, near, -1); });
  expect_refused("bytes", [&] { (void)all_reduce_us(dgx, near, std::nan("")); });
}

// planner.md 2.8: bytes of flat and hierarchical all-to-all, DeepSeek's experts on 4 hosts of 8 GPUs.
TEST(ExchangeTest, CountsBytesOfEachPath) {
  const Machine m = machine("dgx-h100", 4);
  const Group group = place_group(m, 32, 1);
  ExchangeShape shape;
  shape.tokens = 4096;
  shape.row = 7168;
  shape.topk = 8;
  shape.destinations = expected_destinations({32, 4, 256, 8, 0, false});
  const double rows = 4096.0 * 7168;
  const ExchangeTime flat = exchange_time(m, group, shape, ExchangePath::flat);
  EXPECT_NEAR(flat.far_bytes, rows * 7.2668 * 0.75, rows * 1e-3);
  EXPECT_NEAR(flat.near_bytes, rows * 7.2668 * 7 / 32, rows * 1e-3);
  EXPECT_EQ(flat.messages, 24);
  const ExchangeTime rail = exchange_time(m, group, shape, ExchangePath::rail_aligned);
  EXPECT_NEAR(rail.far_bytes, rows * 3.6142 * 0.75, rows * 1e-3);
  EXPECT_EQ(rail.messages, 3);
  EXPECT_EQ(rail.spine_bytes, 0);
  EXPECT_NEAR(rail.near_bytes, flat.near_bytes + rows * 7.2668 * 0.75 * 7 / 8, rows * 1e-3);
  const ExchangeTime two = exchange_time(m, group, shape, ExchangePath::hierarchical);
  EXPECT_EQ(two.far_bytes, rail.far_bytes);
  EXPECT_GT(two.spine_bytes, 0);
  EXPECT_LT(two.near_bytes, rail.near_bytes);
  // The network is the slow tier, so sending once for each host wins.
  EXPECT_NE(exchange_time(m, group, shape, ExchangePath::automatic).path, ExchangePath::flat);
  // An oversubscribed spine leaves the rails alone.
  const Machine thin = machine("dgx-h100", 4, 4);
  EXPECT_EQ(exchange_time(thin, group, shape, ExchangePath::rail_aligned).us(), rail.us());
  EXPECT_GT(exchange_time(thin, group, shape, ExchangePath::hierarchical).us(), 2 * two.us());
  EXPECT_EQ(exchange_time(thin, group, shape, ExchangePath::automatic).path, ExchangePath::rail_aligned);
  // Without de-duplication every selection is a row.
  shape.deduplicated = false;
  EXPECT_NEAR(exchange_time(m, group, shape, ExchangePath::flat).far_bytes, rows * 8 * 0.75, 1);
}

TEST(ExchangeTest, RefusesWhatCannotBe) {
  const Machine m = machine("dgx-h100", 1);
  const Group group = place_group(m, 8, 1);
  ExchangeShape shape;
  shape.tokens = -1;
  expect_refused("tokens -1", [&] { (void)exchange_time(m, group, shape, ExchangePath::flat); });
  shape.tokens = 1;
  shape.imbalance = 0.5;
  expect_refused("imbalance 0.5", [&] { (void)exchange_time(m, group, shape, ExchangePath::flat); });
  expect_refused("16 GPUs", [&] { (void)place_group(m, 16, 1); });
  expect_refused("did you mean \"rail_aligned\"", [] { (void)parse_exchange_path("rail_alined"); });
  expect_refused("0 hosts", [] { (void)machine("dgx-h100", 0); });
  expect_refused("oversubscription 0.5", [] { (void)machine("dgx-h100", 1, 0.5); });
  expect_refused("oversubscription nan", [] { (void)machine("dgx-h100", 1, std::nan("")); });
  expect_refused("pods of 12", [] { (void)machine("dgx-h100", 4, 1, 12); });
}

TEST(RooflineTest, IsBoundByComputeOrByMemory) {
  const Machine h100 = machine("dgx-h100", 1);
  const KernelTime large = gemm_time(h100, 8192, 8192, 8192, 1, MathType::bf16, 2, 0.75);
  EXPECT_FALSE(large.memory_bound);
  EXPECT_EQ(large.flops, 2 * 8192.0 * 8192 * 8192);
  // 4096 tiles are 31.03 waves of 132, rounded up to 32.
  EXPECT_NEAR(large.us, 3 + large.flops / (989e6 * 0.75 * 4096 / 132 / 32), 1);
  const KernelTime small = gemm_time(h100, 16, 8192, 8192, 1, MathType::fp8, 1, 0.75);
  EXPECT_TRUE(small.memory_bound);
  EXPECT_NEAR(small.us, 3 + small.bytes / (3350e3 * 0.85), 0.1);
  EXPECT_LT(gemm_time(h100, 8192, 8192, 8192, 1, MathType::fp8, 1, 0.75).us, 0.6 * large.us);
  EXPECT_EQ(gemm_time(h100, 0, 8192, 8192, 1, MathType::bf16, 2, 0.75).us, 0);
  expect_refused("no fp8 rate",
                 [] { (void)gemm_time(machine("dgx-a100", 1), 1, 1, 1, 1, MathType::fp8, 1, 0.75); });
  expect_refused("did you mean \"fp8\"", [] { (void)parse_math_type("fp9"); });
}

TEST(RooflineTest, CountsAttention) {
  const Machine h100 = machine("dgx-h100", 1);
  AttentionShape shape;
  shape.sequences = 128;
  shape.keys = 4096;
  shape.heads = 128;
  shape.qk_dim = 576;
  shape.value_dim = 512;
  shape.kv_bytes = 1152;
  const KernelTime time = attention_time(h100, shape, 0.6);
  EXPECT_EQ(time.flops, 2.0 * 128 * 128 * 4096 * (576 + 512));
  EXPECT_GT(time.bytes, 128.0 * 4096 * 1152);
}

}  // namespace
}  // namespace shunt

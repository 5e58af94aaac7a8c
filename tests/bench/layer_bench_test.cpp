#include <shunt/bench/layer_bench.h>

#include <functional>
#include <string>

#include <gtest/gtest.h>

#include <shunt/core/error.h>

#include "torch_plugin.h"

namespace shunt::bench {
namespace {

LayerPoint small() {
  LayerPoint point;
  point.tokens = 90;
  point.hidden = 48;
  point.ffn = 40;
  point.num_experts = 6;
  point.threads = 1;
  point.warmup = 0;
  point.iterations = 2;
  return point;
}

void expect_right(const LayerPoint& point) {
  const LayerResult result = measure_layer(point);
  EXPECT_FALSE(result.failed);
  for (const LayerRow& row : result.rows) {
    EXPECT_TRUE(row.correct) << row.impl << ": " << row.reason;
    EXPECT_EQ(row.total_ms.count, 2) << row.impl;
  }
  EXPECT_EQ(result.rows.size(), point.impls.size());
  EXPECT_EQ(layer_records(result).size(), result.rows.size());
  EXPECT_NE(format_layer_table(result).find("tokens/s"), std::string::npos);
}

TEST(LayerBenchTest, EveryActivationIsRight) {
  for (const char* activation : {"gelu", "silu", "swiglu"})
    for (const DType dtype : {DType::f32, DType::bf16}) {
      LayerPoint point = small();
      point.activation = activation;
      point.dtype = dtype;
      point.bias = dtype == DType::f32;
      point.shared_experts = 1;
      expect_right(point);
    }
}

TEST(LayerBenchTest, CapacityRanksAndForwardAloneAreRight) {
  LayerPoint point = small();
  point.capacity_factor = 0.8;
  expect_right(point);
  EXPECT_GT(measure_layer(point).drop_rate, 0);
  point.ranks = 3;
  expect_right(point);
  point.capacity_factor = 0;
  point.backward = false;
  expect_right(point);
}

TEST(LayerBenchTest, CountsTheProducts) {
  LayerPoint point = small();
  point.shared_experts = 2;
  const LayerResult result = measure_layer(point);
  EXPECT_EQ(result.flops, 3 * (90 * 4 * 2 * 48 * (40 + 40) + 2 * 90 * 48 * 6));
}

TEST(LayerBenchTest, GradientsEqualAutograd) {
  if (const std::string reason = torch_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  for (const char* activation : {"gelu", "silu", "swiglu"})
    for (const bool bias : {false, true}) {
      LayerPoint point = small();
      point.impls = {"shunt", "torch"};
      point.activation = activation;
      point.bias = bias;
      point.shared_experts = bias ? 0 : 1;
      expect_right(point);
    }
  LayerPoint point = small();
  point.impls = {"shunt", "torch"};
  point.dtype = DType::bf16;
  expect_right(point);
}

std::string refused(const std::function<void(LayerPoint&)>& change) {
  LayerPoint point = small();
  change(point);
  try {
    check_layer_point(point);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    return error.what();
  }
  return "nothing was refused";
}

TEST(LayerBenchTest, RefusesWhatMeansNothing) {
  EXPECT_NE(refused([](LayerPoint& p) { p.impls = {"tensorflow"}; }).find("torch"), std::string::npos);
  EXPECT_NE(refused([](LayerPoint& p) { p.activation = "relu"; }).find("silu"), std::string::npos);
  EXPECT_NE(refused([](LayerPoint& p) { p.top_k = 7; }).find("7"), std::string::npos);
  EXPECT_NE(refused([](LayerPoint& p) { p.gate = "softkk"; }).find("softk"), std::string::npos);
  EXPECT_NE(refused([](LayerPoint& p) { p.dtype = DType::f16; }).find("bfloat16"), std::string::npos);
  EXPECT_NE(refused([](LayerPoint& p) {
              p.impls = {"torch"};
              p.ranks = 2;
            }).find("--ranks"),
            std::string::npos);
  EXPECT_NE(refused([](LayerPoint& p) { p.capacity_factor = -1; }).find("--capacity-factor"),
            std::string::npos);
}

}  // namespace
}  // namespace shunt::bench

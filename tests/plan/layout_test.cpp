#include <shunt/plan/layout.h>

#include "models.h"

namespace shunt::plan {
namespace {

Layout make(std::int64_t tp, std::int64_t pp, std::int64_t ep, std::int64_t dp) {
  Layout layout;
  layout.tp = tp;
  layout.pp = pp;
  layout.ep = ep;
  layout.dp = dp;
  return layout;
}

TEST(LayoutTest, FillsInWhatFollows) {
  const Layout layout = resolve(make(2, 16, 64, 128), preset("r1"));
  EXPECT_EQ(layout.world(), 4096);
  EXPECT_EQ(layout.etp, 1);
  EXPECT_EQ(layout.edp(), 4);
  EXPECT_EQ(layout.stage_layers.front(), 4);
  EXPECT_EQ(layout.stage_layers.back(), 3);
  EXPECT_EQ(resolve(make(8, 1, 1, 2), preset("mixtral-8x7b")).etp, 8);
}

TEST(LayoutTest, RefusesWhatDoesNotDivide) {
  const ModelSpec r1 = preset("r1");
  const ModelSpec qwen = preset("qwen3-235b");
  const auto refused = [](const ModelSpec& model, const Layout& layout, const std::string& message) {
    expect_refused(message, [&] { (void)resolve(layout, model); });
  };
  refused(r1, make(0, 1, 1, 1), "tp 0: expected a number in [1, 65536]");
  refused(r1, make(1, 1, -2, 1), "ep -2: expected a number in [1, 65536]");
  refused(r1, make(3, 1, 1, 1), "tp 3 does not divide the 128 attention heads of r1");
  refused(preset("gpt-oss-120b"), make(6, 1, 1, 1),
          "tp 6 does not divide the 64 attention heads of gpt-oss-120b");
  refused(r1, make(1, 62, 1, 1), "pp 62: r1 has only 61 layers");
  refused(r1, make(1, 1, 144, 144),
          "ep 144 does not divide the 256 experts of r1; 32 redundant experts would make it 2 on each");
  refused(r1, make(1, 1, 64, 32),
          "etp 1 * ep 64 = 64 does not divide tp 1 * cp 1 * dp 32 = 32 ranks of a stage");
  refused(r1, make(1, 1024, 1, 65536), "tp 1 * cp 1 * dp 65536 * pp 1024 is more than 4194304 GPUs");
  Layout layout = make(1, 4, 1, 1);
  layout.stage_layers = {36, 12, 12};
  refused(r1, layout, "stage layers 36,12,12: 3 numbers for pp 4");
  layout.stage_layers = {36, 12, 12, 12};
  refused(r1, layout, "stage layers 36,12,12,12 sum to 72, but r1 has 61 layers");
  layout.stage_layers = {0, 36, 13, 12};
  refused(r1, layout, "layers of a stage 0: expected a number in [1, 61]");
  layout = make(1, 1, 32, 32);
  layout.redundant_experts = 30;
  refused(r1, layout, "ep 32 does not divide the 256 experts of r1 and 30 redundant ones, 286 in all");
  layout.redundant_experts = -32;
  refused(r1, layout, "redundant experts -32: expected a number in [0, 65536]");
  layout = make(4, 1, 8, 8);
  layout.etp = 7;
  refused(qwen, layout, "etp 7 does not divide the 1536 columns of one expert of qwen3-235b");
  refused(gpt(4, 64, 8), make(1, 1, 2, 2), "ep 2: gpt has no experts, so ep must be 1");
  ModelSpec heads = gpt(4, 96, 12);
  heads.attention.kv_heads = 3;
  refused(heads, make(2, 1, 1, 1),
          "tp 2 neither divides the 3 key and value heads of gpt nor is a multiple of them");
}

TEST(LayoutTest, DeepSeekServesWithRedundantExperts) {
  Layout layout = make(1, 1, 144, 144);
  layout.redundant_experts = 32;
  EXPECT_EQ(resolve(layout, preset("r1")).edp(), 1);
}

}  // namespace
}  // namespace shunt::plan

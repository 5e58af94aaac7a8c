#include <shunt/cluster/parameters.h>

#include <gtest/gtest.h>

#include <shunt/cluster/model_shape.h>

namespace shunt {
namespace {

constexpr const char* kPresets = "presets/models";

struct Published {
  const char* name;
  std::int64_t total;
  double active;                ///< Billions
  double active_without_input;  ///< Billions
  std::int64_t kv_bytes;        ///< Per token, bf16
};

// Totals were counted from the published configurations by an independent script, and agree with the published
// figures; kv bytes likewise.
constexpr Published kPublished[] = {
    {"v2-lite", 15'706'484'224, 2.661, 2.451, 31'104},
    {"v2", 235'741'434'880, 21.38, 20.85, 69'120},
    {"r1", 671'026'419'200, 37.55, 36.63, 70'272},
    {"kimi-k2", 1'026'408'232'448, 32.86, 31.69, 70'272},
    {"gpt-oss-20b", 20'914'757'184, 4.19, 3.608, 49'152},
    {"gpt-oss-120b", 116'829'156'672, 5.71, 5.133, 73'728},
    {"mixtral-8x7b", 46'702'792'704, 12.88, 12.75, 131'072},
    {"mixtral-8x22b", 140'620'634'112, 39.15, 38.96, 229'376},
    {"qwen3-30b", 30'532'122'624, 3.353, 3.042, 98'304},
    {"qwen3-235b", 235'093'634'560, 22.19, 21.57, 192'512},
    {"qwen3-coder-480b", 480'154'875'392, 35.48, 34.54, 253'952},
    {"glm-4.5", 352'797'829'024, 33.63, 32.86, 376'832},
    {"glm-4.5-air", 106'852'251'264, 13.42, 12.80, 188'416},
    {"llama-4-scout", 107'769'861'120, 17.17, 16.14, 196'608},
    {"llama-4-maverick", 400'711'848'960, 17.19, 16.15, 196'608},
    {"olmoe-1b-7b", 6'919'161'856, 1.282, 1.179, 131'072},
    {"qwen3-next-80b", 79'674'391'296, 3.88, 3.56, 24'576},
    {"dbrx", 131'596'523'520, 36.47, 35.85, 163'840},
    {"grok-1", 315'684'820'992, 83.76, 82.95, 262'144},
    {"minimax-m2", 228'689'764'864, 11.03, 10.42, 253'952},
};

TEST(ParametersTest, TotalsOfPublishedModelsAreExact) {
  EXPECT_EQ(std::size(kPublished), list_presets(kPresets).size());
  for (const Published& p : kPublished) {
    const ModelSpec model = find_model(p.name, kPresets);
    const ParameterCount count = count_parameters(model);
    EXPECT_EQ(count.total, p.total) << p.name;
    EXPECT_NEAR(static_cast<double>(count.active) / 1e9, p.active, 0.006) << p.name;
    EXPECT_NEAR(static_cast<double>(count.active_without_input) / 1e9, p.active_without_input, 0.006)
        << p.name;
    EXPECT_EQ(kv_bytes_per_token(model, 2), p.kv_bytes) << p.name;
  }
}

TEST(ParametersTest, PartsSumToTheTotal) {
  for (const Published& p : kPublished) {
    const ModelSpec model = find_model(p.name, kPresets);
    const ParameterCount c = count_parameters(model);
    EXPECT_EQ(c.embedding + c.positions + c.output_head + c.attention + c.norms + c.dense_mlp + c.router +
                  c.routed_experts + c.shared_experts,
              c.total)
        << p.name;
    std::int64_t layers = 0;
    for (const LayerSpec& layer : model.layers) layers += layer_parameters(model, layer).total();
    EXPECT_EQ(layers + c.embedding + c.output_head + model.hidden, c.total) << p.name;
  }
}

TEST(ParametersTest, MtpModulesOfDeepSeekV3) {
  const ParameterCount count = count_parameters(find_model("r1", kPresets));
  EXPECT_EQ(count.mtp, 11'610'068'224);
  // What its checkpoint stores: 685B with copies of embedding and head.
  EXPECT_EQ(count.total + count.mtp + count.mtp_copies, 684'489'845'504);
}

TEST(ParametersTest, GlmCountsItsModuleAndNoEmbeddings) {
  const ParameterCount count = count_parameters(find_model("glm-4.5", kPresets));
  EXPECT_NEAR(static_cast<double>(count.total + count.mtp - count.embedding - count.output_head) / 1e9, 355.2,
              0.05);
}

TEST(ParametersTest, ExpertOfDeepSeekV3) {
  const ModelSpec model = find_model("r1", kPresets);
  const LayerParameters layer = layer_parameters(model, model.layers.back());
  EXPECT_EQ(layer.expert, 44'040'192);
  EXPECT_EQ(layer.attention(), 187'107'328);
  EXPECT_EQ(model.moe_layers(), 58);
}

TEST(ParametersTest, LinearAttentionKeepsAStateInsteadOfKeys) {
  const ModelSpec model = find_model("qwen3-next-80b", kPresets);
  // 36 layers: 32 heads of 128 x 128 in fp32, and 3 rows of 2 x 2048 + 4096 in bf16.
  EXPECT_EQ(state_bytes_per_sequence(model), 36 * (32 * 128 * 128 * 4 + 3 * 8192 * 2));
  EXPECT_EQ(state_bytes_per_sequence(find_model("r1", kPresets)), 0);
}

}  // namespace
}  // namespace shunt

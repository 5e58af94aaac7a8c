#include <shunt/cluster/parameters.h>

#include "temporary_directory.h"

namespace shunt {
namespace {

constexpr const char* kPresets = "presets/models";

// The keys of the published config.json files that bear on parameters, and some that do not.
struct Config {
  const char* preset;
  const char* json;
};

constexpr Config kConfigs[] = {
    {"v2-lite",
     R"({"model_type": "deepseek_v2", "hidden_size": 2048, "num_hidden_layers": 27, "vocab_size": 102400,
      "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": null, "kv_lora_rank": 512,
      "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "attention_bias": false,
      "n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "moe_intermediate_size": 1408,
      "intermediate_size": 10944, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1,
      "topk_method": "greedy", "tie_word_embeddings": false, "rope_theta": 10000})"},
    {"r1",
     R"({"model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "vocab_size": 129280,
      "num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
      "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "attention_bias": false,
      "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
      "intermediate_size": 18432, "first_k_dense_replace": 3, "moe_layer_freq": 1, "n_group": 8, "topk_group": 4,
      "topk_method": "noaux_tc", "scoring_func": "sigmoid", "num_nextn_predict_layers": 1,
      "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "tie_word_embeddings": false})"},
    {"gpt-oss-120b",
     R"({"model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 36, "vocab_size": 201088,
      "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "attention_bias": true,
      "num_local_experts": 128, "num_experts_per_tok": 4, "experts_per_token": 4, "intermediate_size": 2880,
      "sliding_window": 128, "quantization_config": {"quant_method": "mxfp4"}, "tie_word_embeddings": false})"},
    {"mixtral-8x7b",
     R"({"model_type": "mixtral", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 32000,
      "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
      "intermediate_size": 14336, "sliding_window": null, "tie_word_embeddings": false})"},
    {"qwen3-235b",
     R"({"model_type": "qwen3_moe", "hidden_size": 4096, "num_hidden_layers": 94, "vocab_size": 151936,
      "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "attention_bias": false,
      "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536, "intermediate_size": 12288,
      "decoder_sparse_step": 1, "mlp_only_layers": [], "sliding_window": null, "use_sliding_window": false,
      "tie_word_embeddings": false})"},
    {"glm-4.5",
     R"({"model_type": "glm4_moe", "hidden_size": 5120, "num_hidden_layers": 92, "vocab_size": 151552,
      "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "attention_bias": true,
      "use_qk_norm": true, "n_routed_experts": 160, "num_experts_per_tok": 8, "n_shared_experts": 1,
      "moe_intermediate_size": 1536, "intermediate_size": 12288, "first_k_dense_replace": 3, "n_group": 1,
      "topk_group": 1, "num_nextn_predict_layers": 1, "tie_word_embeddings": false})"},
    {"llama-4-maverick", R"({"model_type": "llama4", "vision_config": {"hidden_size": 1408}, "text_config": {
      "model_type": "llama4_text", "hidden_size": 5120, "num_hidden_layers": 48, "vocab_size": 202048,
      "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "attention_bias": false,
      "use_qk_norm": false, "num_local_experts": 128, "num_experts_per_tok": 1, "intermediate_size": 8192,
      "intermediate_size_mlp": 16384, "interleave_moe_layer_step": 2, "attention_chunk_size": 8192,
      "tie_word_embeddings": false}})"},
    {"olmoe-1b-7b",
     R"({"model_type": "olmoe", "hidden_size": 2048, "num_hidden_layers": 16, "vocab_size": 50304,
      "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
      "intermediate_size": 1024, "attention_bias": false, "tie_word_embeddings": false})"},
    {"qwen3-next-80b", R"({"model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48,
      "vocab_size": 151936, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
      "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512, "intermediate_size": 5120,
      "shared_expert_intermediate_size": 512, "decoder_sparse_step": 1, "mlp_only_layers": [],
      "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
      "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
      "tie_word_embeddings": false})"},
    {"dbrx", R"({"model_type": "dbrx", "d_model": 6144, "n_layers": 40, "n_heads": 48, "vocab_size": 100352,
      "attn_config": {"kv_n_heads": 8, "clip_qkv": 8},
      "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4, "ffn_hidden_size": 10752}, "tie_word_embeddings": false})"},
    {"minimax-m2",
     R"({"model_type": "minimax_m2", "hidden_size": 3072, "num_hidden_layers": 62, "vocab_size": 200064,
      "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "use_qk_norm": true,
      "num_local_experts": 256, "num_experts_per_tok": 8, "intermediate_size": 1536, "shared_intermediate_size": 0,
      "use_routing_bias": true, "num_mtp_modules": 3, "sliding_window": null,
      "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "tie_word_embeddings": false})"},
};

constexpr const char* kSmall =
    R"({"model_type": "mixtral", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100, "num_attention_heads": 8,
        "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 128})";

class HfConfigTest : public testing::Test {
 protected:
  ModelSpec read(const std::string& json) const { return read_hf_config(dir_.write("config.json", json)); }

  void refuse(const std::string& json, const std::string& message) const {
    const std::string path = dir_.write("config.json", json);
    expect_error(Errc::io, path + ":" + message, [&] { (void)read_hf_config(path); });
  }

  TemporaryDirectory dir_;
};

TEST_F(HfConfigTest, GivesThePresetsOfTheSameModels) {
  for (const Config& config : kConfigs) {
    const ModelSpec model = read(config.json);
    const ModelSpec preset = find_model(config.preset, kPresets);
    EXPECT_EQ(count_parameters(model).total, count_parameters(preset).total) << config.preset;
    EXPECT_EQ(count_parameters(model).active, count_parameters(preset).active) << config.preset;
    EXPECT_EQ(count_parameters(model).mtp, count_parameters(preset).mtp) << config.preset;
    EXPECT_EQ(kv_bytes_per_token(model, 2), kv_bytes_per_token(preset, 2)) << config.preset;
    EXPECT_EQ(state_bytes_per_sequence(model), state_bytes_per_sequence(preset)) << config.preset;
    EXPECT_EQ(model.experts, preset.experts) << config.preset;
    EXPECT_EQ(model.top_k, preset.top_k) << config.preset;
    EXPECT_EQ(model.top_groups, preset.top_groups) << config.preset;
    EXPECT_EQ(model.weights, preset.weights) << config.preset;
    EXPECT_EQ(model.expert_weights, preset.expert_weights) << config.preset;
    EXPECT_EQ(model.window, preset.window) << config.preset;
    for (std::size_t i = 0; i < preset.layers.size(); ++i) {
      EXPECT_EQ(model.layers[i].moe, preset.layers[i].moe) << config.preset << " layer " << i;
      EXPECT_EQ(model.layers[i].attention, preset.layers[i].attention) << config.preset << " layer " << i;
    }
  }
}

TEST_F(HfConfigTest, ReadsDenseModels) {
  const ModelSpec qwen = read(R"({"model_type": "qwen2", "hidden_size": 8192, "num_hidden_layers": 80,
    "vocab_size": 152064, "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 29568,
    "use_sliding_window": false, "sliding_window": 131072, "tie_word_embeddings": false})");
  EXPECT_EQ(count_parameters(qwen).total, 72'706'203'648);
  EXPECT_EQ(kv_bytes_per_token(qwen, 2), 327'680);
  const ModelSpec llama = read(R"({"model_type": "llama", "hidden_size": 16384, "num_hidden_layers": 126,
    "vocab_size": 128256, "num_attention_heads": 128, "num_key_value_heads": 8, "intermediate_size": 53248})");
  EXPECT_EQ(kv_bytes_per_token(llama, 2), 516'096);
  EXPECT_NEAR(static_cast<double>(count_parameters(llama).total) / 1e9, 405.85, 0.01);
}

TEST_F(HfConfigTest, SaysWhatItAssumed) {
  EXPECT_TRUE(read(kSmall).notes.empty());
  EXPECT_EQ(read(replaced(kSmall, "mixtral", "mixtrel")).notes,
            std::vector<std::string>{
                "model_type \"mixtrel\" is not known; counted from the fields of config.json alone"});
  EXPECT_EQ(read(replaced(kSmall, "\"vocab_size\"",
                          "\"quantization_config\": {\"quant_method\": \"awq\"}, \"vocab_size\""))
                .notes.size(),
            1U);
}

TEST_F(HfConfigTest, NamesEveryMistake) {
  refuse("{\n  \"hidden_size\": ,\n}", "2:18: not valid JSON");
  refuse("", "1:1: not valid JSON");
  refuse("[1]", " expected a JSON object");
  refuse(replaced(kSmall, "hidden_size", "hidden"), " none of the keys hidden_size, d_model is there");
  refuse(replaced(kSmall, "vocab_size", "vocab"), " the key vocab_size is missing");
  refuse(replaced(kSmall, "\"num_hidden_layers\": 4", "\"num_hidden_layers\": -4"),
         " num_hidden_layers is -4; expected an integer in [1, 1024]");
  refuse(replaced(kSmall, "\"num_hidden_layers\": 4", "\"num_hidden_layers\": \"4\""),
         " num_hidden_layers is \"4\"; expected an integer in [1, 1024]");
  refuse(replaced(kSmall, "\"num_hidden_layers\": 4", "\"num_hidden_layers\": 18446744073709551615"),
         " num_hidden_layers is 18446744073709551615; expected an integer in [1, 1024]");
  refuse(replaced(kSmall, "\"num_local_experts\": 8", "\"num_local_experts\": 8, \"num_experts\": 16"),
         " num_experts is 16, but num_local_experts is 8");
  refuse(replaced(kSmall, "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9"),
         " num_experts_per_tok is 9; expected an integer in [1, 8]");
  refuse(replaced(kSmall, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
         " 3 key and value heads do not divide the 8 heads");
  refuse(replaced(kSmall, "\"hidden_size\": 64", "\"hidden_size\": 65"),
         " head_dim is missing, and the hidden size 65 is not a multiple of the 8 heads");
  refuse(replaced(kSmall, "\"vocab_size\"", "\"layer_types\": [\"full_attention\"], \"vocab_size\""),
         " layer_types: expected a list of 4 texts");
  refuse(replaced(kSmall, "\"vocab_size\"", "\"moe_layer_freq\": [1, 0], \"vocab_size\""),
         " moe_layer_freq has 2 entries for 4 layers");
  refuse(replaced(kSmall, "\"vocab_size\"", "\"tie_word_embeddings\": 1, \"vocab_size\""),
         " tie_word_embeddings is 1; expected true or false");
}

}  // namespace
}  // namespace shunt

#include <shunt/cluster/model.h>

#include "temporary_directory.h"

namespace shunt {
namespace {

constexpr const char* kDense =
    "format = 1\ndescription = \"d\"\nsource = \"s\"\nhidden = 64\n"
    "[architecture]\nlayers = 4\nvocab = 100\ndense_intermediate = 256\n"
    "[attention]\nheads = 8\nkv_heads = 2\nhead_dim = 8\n";
constexpr const char* kMoe =
    "format = 1\ndescription = \"d\"\nsource = \"s\"\nexperts = 8\ntopk = 2\nhidden = 64\n"
    "[architecture]\nlayers = 4\nvocab = 100\nexpert_intermediate = 32\n"
    "[attention]\nheads = 8\nkv_heads = 2\nhead_dim = 8\n";

class ModelTest : public testing::Test {
 protected:
  void refuse(const std::string& content, const std::string& message) const {
    const std::string path = dir_.write("m.toml", content);
    expect_error(Errc::io, path + ":" + message, [&] { (void)read_model(path); });
  }

  TemporaryDirectory dir_;
};

TEST_F(ModelTest, ReadsADenseModel) {
  const ModelSpec model = read_model(dir_.write("small.toml", kDense));
  EXPECT_EQ(model.name, "small");
  EXPECT_EQ(model.experts, 0);
  EXPECT_EQ(model.dense_layers(), 4);
  EXPECT_EQ(model.attention.kind, AttentionKind::grouped);
}

TEST_F(ModelTest, PlacesExpertsAndWindows) {
  const ModelSpec model = read_model(dir_.write(
      "m.toml",
      replaced(kMoe, "layers = 4", "layers = 6\ndense_first = 1\nmoe_every = 2\ndense_intermediate = 9") +
          "window = 16\nfull_every = 3\n"));
  std::string pattern;
  for (const LayerSpec& layer : model.layers) {
    pattern += layer.moe ? 'e' : 'd';
    pattern += layer.attention == LayerAttention::full ? 'f' : 'w';
  }
  EXPECT_EQ(pattern, "dwewdfewdwef");
}

TEST_F(ModelTest, NamesLineAndColumnOfEveryMistake) {
  refuse(replaced(kMoe, "[architecture]", "[architectur]"),
         "7:2: unknown key \"architectur\"; did you mean \"architecture\"? Allowed are format, description, "
         "source, "
         "names, experts, topk, hidden, architecture, attention, linear_attention");
  refuse("format = 1\ndescription = \"d\"\nsource = \"s\"\nexperts = 8\ntopk = 2\nhidden = 64\n",
         "1:1: key \"architecture\" is missing");
  refuse(replaced(kMoe, "vocab", "vocap"),
         "9:1: unknown key \"architecture.vocap\"; did you mean \"vocab\"? Allowed are layers, vocab, "
         "tied_embeddings, learned_positions, norms_per_layer, norm_bias, gated, mlp_bias, dense_first, "
         "moe_every, "
         "mtp_layers, shared_gate, expert_bias, dense_intermediate, expert_intermediate, router_bias, "
         "selection_bias, expert_groups, top_groups, shared_intermediate, weights, expert_weights");
  refuse(replaced(kMoe, "layers = 4", "layers = 0"),
         "8:10: architecture.layers: expected an integer in [1, 1024]");
  refuse(replaced(kMoe, "layers = 4", "layers = -4"),
         "8:10: architecture.layers: expected an integer in [1, 1024]");
  refuse(replaced(kMoe, "vocab = 100", "vocab = 100\nweights = \"fp7\""),
         "10:11: architecture.weights: \"fp7\" is not known; did you mean \"fp8\"? Allowed are bf16, fp8, "
         "fp8_block, int8, "
         "mxfp4, nvfp4, int4");
  refuse(replaced(kMoe, "expert_intermediate = 32\n", ""),
         "7:1: key \"architecture.expert_intermediate\" is missing");
  refuse(replaced(kMoe, "vocab = 100", "vocab = 100\ndense_intermediate = 3"),
         "10:22: architecture.dense_intermediate: every layer has experts");
  refuse(replaced(kMoe, "vocab = 100", "vocab = 100\nexpert_groups = 3"),
         "10:17: architecture.expert_groups: 3 does not divide the 8 experts");
  refuse(replaced(kMoe, "kv_heads = 2", "kv_heads = 3"),
         "13:12: attention.kv_heads: 3 does not divide the 8 heads");
  refuse(replaced(kMoe, "kv_heads = 2", "kv_rank = 2"),
         "13:1: unknown key \"attention.kv_rank\"; allowed are kind, heads, window, "
         "full_every, kv_heads, head_dim, qkv_bias, output_bias, qk_norm, sinks, output_gate");
  refuse(std::string(kMoe) + "full_every = 2\n",
         "15:14: attention.full_every: needs a window or [linear_attention] for the other layers");
  refuse(std::string(kDense) + "sinks = 1\n", "13:9: attention.sinks: expected true or false");
  refuse(replaced(kDense, "vocab", "moe_every = 2\nvocab"),
         "7:13: architecture.moe_every: only for a model with experts");
}

TEST_F(ModelTest, FindsPresetsFilesAndDirectories) {
  const std::string toml = dir_.write("x.toml", kDense);
  EXPECT_EQ(find_model("r1", "presets/models").name, "r1");
  EXPECT_EQ(find_model(toml, "no/such/directory").name, "x");
  dir_.write("tiny/config.json",
             R"({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "vocab_size": 4, "intermediate_size": 16})");
  EXPECT_EQ(find_model(dir_.path() + "/tiny", "no").name, "tiny");
  EXPECT_EQ(find_model(dir_.path() + "/tiny/config.json", "no").name, "tiny");
  try {
    (void)find_model("r2", "presets/models");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_NE(std::string(error.what()).find("did you mean \"r1\"?"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace shunt

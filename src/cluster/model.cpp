#include <shunt/cluster/model.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "model_bounds.h"
#include "presets.h"
#include "toml_reader.h"

namespace shunt {
namespace {

using detail::TomlReader;

constexpr std::int64_t kFormat = 1;

const std::vector<std::string>& head_keys() {
  static const std::vector<std::string> keys = {
      "format", "description", "source",       "names",     "experts",
      "topk",   "hidden",      "architecture", "attention", "linear_attention"};
  return keys;
}

const std::vector<std::string>& architecture_keys() {
  static const std::vector<std::string> keys = {
      "layers",      "vocab",          "tied_embeddings", "learned_positions",  "norms_per_layer",
      "norm_bias",   "gated",          "mlp_bias",        "dense_first",        "moe_every",
      "mtp_layers",  "shared_gate",    "expert_bias",     "dense_intermediate", "expert_intermediate",
      "router_bias", "selection_bias", "expert_groups",   "top_groups",         "shared_intermediate",
      "weights",     "expert_weights"};
  return keys;
}

AttentionSpec read_grouped(const TomlReader& reader) {
  AttentionSpec a;
  a.heads = reader.integer("heads", 1, detail::kMaxHeads);
  a.kv_heads = reader.integer_or("kv_heads", 1, a.heads, a.heads);
  if (a.heads % a.kv_heads != 0)
    reader.fail("kv_heads", fmt::format("{} does not divide the {} heads", a.kv_heads, a.heads));
  a.head_dim = reader.integer("head_dim", 1, detail::kMaxWidth);
  a.qkv_bias = reader.flag_or("qkv_bias", false);
  a.output_bias = reader.flag_or("output_bias", false);
  a.qk_norm = static_cast<QkNorm>(reader.choice_or("qk_norm", {"none", "head", "full"}, 0));
  a.sinks = reader.flag_or("sinks", false);
  a.output_gate = reader.flag_or("output_gate", false);
  return a;
}

AttentionSpec read_latent(const TomlReader& reader) {
  AttentionSpec a;
  a.kind = AttentionKind::latent;
  a.heads = reader.integer("heads", 1, detail::kMaxHeads);
  a.q_rank = reader.integer_or("q_rank", 0, detail::kMaxWidth, 0);
  a.kv_rank = reader.integer("kv_rank", 1, detail::kMaxWidth);
  a.nope_dim = reader.integer("nope_dim", 1, detail::kMaxWidth);
  a.rope_dim = reader.integer("rope_dim", 0, detail::kMaxWidth);
  a.value_dim = reader.integer("value_dim", 1, detail::kMaxWidth);
  return a;
}

/// The table [attention]; what its keys say about single layers goes to `model`.
void read_attention(const TomlReader& file, const toml::table& table, ModelSpec& model) {
  std::vector<std::string> keys = {"kind", "heads", "window", "full_every"};
  const toml::table* attention = table["attention"].as_table();
  const bool latent = attention != nullptr && (*attention)["kind"].value_or<std::string>("") == "latent";
  for (const char* key :
       latent ? std::vector<const char*>{"q_rank", "kv_rank", "nope_dim", "rope_dim", "value_dim"}
              : std::vector<const char*>{"kv_heads", "head_dim", "qkv_bias", "output_bias", "qk_norm",
                                         "sinks", "output_gate"})
    keys.emplace_back(key);
  const TomlReader reader = file.table("attention", keys);
  model.attention =
      reader.choice_or("kind", {"grouped", "latent"}, 0) == 1 ? read_latent(reader) : read_grouped(reader);
  model.window = reader.integer_or("window", 1, detail::kMaxTokens, 0);
  const bool linear = file.has("linear_attention");
  if (linear && model.window > 0) reader.fail("window", "not together with [linear_attention]");
  const std::int64_t full_every = reader.integer_or("full_every", 1, detail::kMaxLayers, 0);
  if (full_every > 0 && !linear && model.window == 0)
    reader.fail("full_every", "needs a window or [linear_attention] for the other layers");
  if (full_every == 0 && linear)
    reader.fail("full_every", "is missing: which layers have no linear attention?");
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    const bool full =
        full_every > 0 ? (static_cast<std::int64_t>(i) + 1) % full_every == 0 : model.window == 0;
    if (!full) model.layers[i].attention = linear ? LayerAttention::linear : LayerAttention::window;
  }
  if (!linear) return;
  const TomlReader other =
      file.table("linear_attention", {"key_heads", "value_heads", "key_dim", "value_dim", "conv"});
  model.linear.key_heads = other.integer("key_heads", 1, detail::kMaxHeads);
  model.linear.value_heads = other.integer("value_heads", 1, detail::kMaxHeads);
  model.linear.key_dim = other.integer("key_dim", 1, detail::kMaxWidth);
  model.linear.value_dim = other.integer("value_dim", 1, detail::kMaxWidth);
  model.linear.conv = other.integer("conv", 1, detail::kMaxWidth);
}

void read_experts(const TomlReader& reader, ModelSpec& model) {
  model.expert_intermediate = reader.integer("expert_intermediate", 1, detail::kMaxWidth);
  model.shared_intermediate = reader.integer_or("shared_intermediate", 0, detail::kMaxWidth, 0);
  model.shared_gate = reader.flag_or("shared_gate", false);
  model.expert_bias = reader.flag_or("expert_bias", false);
  model.router_bias = reader.flag_or("router_bias", false);
  model.selection_bias = reader.flag_or("selection_bias", false);
  model.expert_groups = reader.integer_or("expert_groups", 1, model.experts, 1);
  model.top_groups = reader.integer_or("top_groups", 1, model.expert_groups, model.expert_groups);
  if (model.experts % model.expert_groups != 0) {
    reader.fail("expert_groups",
                fmt::format("{} does not divide the {} experts", model.expert_groups, model.experts));
  }
}

void read_architecture(const TomlReader& file, ModelSpec& model) {
  const TomlReader reader = file.table("architecture", architecture_keys());
  const std::int64_t layers = reader.integer("layers", 1, detail::kMaxLayers);
  model.vocab = reader.integer("vocab", 1, detail::kMaxVocab);
  model.tied_embeddings = reader.flag_or("tied_embeddings", false);
  model.learned_positions = reader.integer_or("learned_positions", 0, detail::kMaxTokens, 0);
  model.norms_per_layer = reader.integer_or("norms_per_layer", 1, 8, 2);
  model.norm_bias = reader.flag_or("norm_bias", false);
  model.gated = reader.flag_or("gated", true);
  model.mlp_bias = reader.flag_or("mlp_bias", false);
  model.mtp_layers = reader.integer_or("mtp_layers", 0, 16, 0);
  model.weights = static_cast<WeightFormat>(reader.choice_or("weights", weight_format_names(), 0));
  model.expert_weights = static_cast<WeightFormat>(
      reader.choice_or("expert_weights", weight_format_names(), static_cast<std::size_t>(model.weights)));
  model.layers.resize(static_cast<std::size_t>(layers));
  if (model.experts > 0) {
    const std::int64_t first = reader.integer_or("dense_first", 0, layers - 1, 0);
    const std::int64_t every = reader.integer_or("moe_every", 1, layers, 1);
    for (std::int64_t i = first; i < layers; ++i)
      model.layers[static_cast<std::size_t>(i)].moe = (i + 1) % every == 0;
    read_experts(reader, model);
  } else {
    for (const char* key :
         {"dense_first", "moe_every", "expert_intermediate", "shared_intermediate", "shared_gate",
          "expert_bias", "router_bias", "selection_bias", "expert_groups", "top_groups", "expert_weights"})
      if (reader.has(key)) reader.fail(key, "only for a model with experts");
  }
  if (model.dense_layers() > 0) {
    model.dense_intermediate = reader.integer("dense_intermediate", 1, detail::kMaxWidth);
  } else if (reader.has("dense_intermediate")) {
    reader.fail("dense_intermediate", "every layer has experts");
  }
}

}  // namespace

const std::vector<std::string>& weight_format_names() {
  static const std::vector<std::string> names = {"bf16",  "fp8",   "fp8_block", "int8",
                                                 "mxfp4", "nvfp4", "int4"};
  return names;
}

double weight_bits(WeightFormat format) noexcept {
  // fp8_block: an fp32 scale for each block of 128 x 128; mxfp4: 8 bits for 32 weights; nvfp4: 8 bits for 16;
  // int4: 16 bits for 128.
  constexpr std::array<double, 7> kBits = {16, 8, 8 + 32.0 / (128 * 128), 8, 4.25, 4.5, 4.125};
  return kBits[static_cast<std::size_t>(format)];
}

std::int64_t ModelSpec::moe_layers() const noexcept {
  return std::count_if(layers.begin(), layers.end(), [](const LayerSpec& layer) { return layer.moe; });
}

std::int64_t ModelSpec::dense_layers() const noexcept {
  return static_cast<std::int64_t>(layers.size()) - moe_layers();
}

ModelSpec read_model(const std::string& path) {
  const toml::table table = detail::parse_toml(path);
  const TomlReader reader(path, table, head_keys());
  detail::expect_format(reader, kFormat);
  ModelSpec model;
  model.name = detail::stem(path);
  model.description = reader.text("description");
  model.source = reader.text("source");
  (void)reader.texts_or_none("names");
  model.hidden = reader.integer("hidden", 1, detail::kMaxWidth);
  if (reader.has("experts") || reader.has("topk")) {
    model.experts = reader.integer("experts", 1, detail::kMaxExperts);
    model.top_k = reader.integer("topk", 1, model.experts);
  }
  read_architecture(reader, model);
  read_attention(reader, table, model);
  return model;
}

ModelSpec find_model(const std::string& name, const std::string& directory) {
  std::error_code code;
  if (std::filesystem::is_directory(name, code))
    return read_hf_config((std::filesystem::path(name) / "config.json").string());
  if (name.ends_with(".json")) return read_hf_config(name);
  return read_model(detail::find_model_file(name, directory));
}

}  // namespace shunt

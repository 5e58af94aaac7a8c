// Reads the config.json of a model on Hugging Face. Families name the same quantity differently; every quantity is
// looked up under all of its names, and two names with different values are a contradiction that is refused.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <shunt/cluster/model.h>
#include <shunt/core/error.h>

#include "model_bounds.h"
#include "toml_reader.h"

namespace shunt {
namespace {

using Json = nlohmann::json;
using Names = std::vector<std::string>;

const Names kHidden = {"hidden_size", "d_model"};
const Names kLayers = {"num_hidden_layers", "n_layers"};
const Names kHeads = {"num_attention_heads", "n_heads"};
const Names kKvHeads = {"num_key_value_heads", "attn_config.kv_n_heads"};
const Names kExperts = {"num_experts", "num_local_experts", "n_routed_experts", "ffn_config.moe_num_experts",
                        "moe_num_experts"};
const Names kTopK = {"num_experts_per_tok",  "num_experts_per_token", "moe_top_k",
                     "ffn_config.moe_top_k", "experts_per_token",     "moe_k"};

class Config {
 public:
  Config(std::string path, Json root) : path_(std::move(path)), root_(std::move(root)) {}

  [[noreturn]] void fail(const std::string& why) const {
    throw Error(Errc::io, fmt::format("{}: {}", path_, why));
  }

  /// The value under a dotted name; nothing where it is absent or null.
  const Json* find(const std::string& name) const {
    const Json* node = &root_;
    std::size_t begin = 0;
    while (true) {
      const std::size_t dot = name.find('.', begin);
      if (!node->is_object()) return nullptr;
      const auto it = node->find(name.substr(begin, dot == std::string::npos ? dot : dot - begin));
      if (it == node->end() || it->is_null()) return nullptr;
      node = &*it;
      if (dot == std::string::npos) return node;
      begin = dot + 1;
    }
  }

  std::optional<std::int64_t> integer(const Names& names, std::int64_t low, std::int64_t high) const {
    std::optional<std::int64_t> found;
    std::string first;
    for (const std::string& name : names) {
      const Json* node = find(name);
      if (node == nullptr) continue;
      const std::int64_t value = whole(name, *node, low, high);
      if (found && *found != value) fail(fmt::format("{} is {}, but {} is {}", first, *found, name, value));
      if (!found) first = name;
      found = value;
    }
    return found;
  }

  std::int64_t need(const Names& names, std::int64_t low, std::int64_t high) const {
    const auto value = integer(names, low, high);
    if (!value) {
      if (names.size() == 1) fail(fmt::format("the key {} is missing", names[0]));
      fail(fmt::format("none of the keys {} is there", fmt::join(names, ", ")));
    }
    return *value;
  }

  std::optional<bool> flag(const std::string& name) const {
    const Json* node = find(name);
    if (node == nullptr) return {};
    if (!node->is_boolean()) fail(fmt::format("{} is {}; expected true or false", name, node->dump()));
    return node->get<bool>();
  }

  std::string text(const std::string& name) const {
    const Json* node = find(name);
    if (node == nullptr) return "";
    if (!node->is_string()) fail(fmt::format("{} is {}; expected a text", name, node->dump()));
    return node->get<std::string>();
  }

  std::optional<std::vector<std::int64_t>> integers(const std::string& name, std::int64_t low,
                                                    std::int64_t high) const {
    const Json* node = find(name);
    if (node == nullptr) return {};
    if (!node->is_array()) fail(fmt::format("{} is {}; expected a list", name, node->dump()));
    std::vector<std::int64_t> values;
    for (const Json& item : *node) values.push_back(whole(name, item, low, high));
    return values;
  }

 private:
  std::int64_t whole(const std::string& name, const Json& node, std::int64_t low, std::int64_t high) const {
    // Larger unsigned numbers would turn negative.
    const bool fits = node.is_number_integer() &&
                      (!node.is_number_unsigned() || node.get<std::uint64_t>() <= std::uint64_t(INT64_MAX));
    if (!fits || node.get<std::int64_t>() < low || node.get<std::int64_t>() > high)
      fail(fmt::format("{} is {}; expected an integer in [{}, {}]", name, node.dump(), low, high));
    return node.get<std::int64_t>();
  }

  std::string path_;
  Json root_;
};

/// What a family does without saying so in its configuration.
struct Family {
  const char* type;
  bool qkv_bias;        ///< where attention_bias is absent
  bool output_bias;     ///< whether attention_bias means the output projection too
  QkNorm qk_norm;       ///< where use_qk_norm is absent
  bool selection_bias;  ///< always
  std::int64_t norms;
  bool tied;  ///< where tie_word_embeddings is absent
};

constexpr Family kFamilies[] = {
    {"dbrx", false, false, QkNorm::none, false, 2, false},
    {"deepseek_v2", false, false, QkNorm::none, false, 2, false},
    {"deepseek_v3", false, false, QkNorm::none, false, 2, false},
    {"glm4_moe", false, false, QkNorm::none, true, 2, false},
    {"gpt_oss", true, true, QkNorm::none, false, 2, false},
    {"grok-1", false, false, QkNorm::none, false, 4, true},
    {"kimi_k2", false, false, QkNorm::none, false, 2, false},
    {"llama", false, true, QkNorm::none, false, 2, false},
    {"llama4", false, true, QkNorm::none, false, 2, false},
    {"llama4_text", false, true, QkNorm::none, false, 2, false},
    {"minimax_m2", false, false, QkNorm::full, false, 2, false},
    {"mistral", false, false, QkNorm::none, false, 2, false},
    {"mixtral", false, false, QkNorm::none, false, 2, false},
    {"olmoe", false, true, QkNorm::full, false, 2, false},
    {"qwen2", true, false, QkNorm::none, false, 2, false},
    {"qwen2_moe", true, false, QkNorm::none, false, 2, false},
    {"qwen3", false, true, QkNorm::head, false, 2, false},
    {"qwen3_moe", false, true, QkNorm::head, false, 2, false},
    {"qwen3_next", false, true, QkNorm::head, false, 2, false},
};
constexpr Family kUnknown = {"", false, true, QkNorm::none, false, 2, false};

const Family& family_of(const std::string& type, ModelSpec& model) {
  for (const Family& family : kFamilies)
    if (type == family.type) return family;
  model.notes.push_back(
      type.empty()
          ? "config.json has no model_type; counted from its fields alone"
          : fmt::format("model_type \"{}\" is not known; counted from the fields of config.json alone",
                        type));
  return kUnknown;
}

bool is_llama4(const std::string& type) {
  return type.starts_with("llama4");
}

/// Text models inside of others keep their fields below one of these.
Json inner_config(const Json& root, ModelSpec& model) {
  for (const char* name : {"text_config", "language_config", "llm_config"}) {
    const auto it = root.find(name);
    if (it == root.end() || !it->is_object()) continue;
    model.notes.push_back(
        fmt::format("counted from {}; what stands beside it (vision, audio) is left out", name));
    Json inner = *it;
    for (const char* key : {"model_type", "tie_word_embeddings", "quantization_config"})
      if (!inner.contains(key) && root.contains(key)) inner[key] = root[key];
    return inner;
  }
  return root;
}

void read_attention(const Config& config, const Family& family, const std::string& type, ModelSpec& model) {
  AttentionSpec& a = model.attention;
  a.heads = config.need(kHeads, 1, detail::kMaxHeads);
  if (const auto rank = config.integer({"kv_lora_rank"}, 0, detail::kMaxWidth); rank && *rank > 0) {
    a.kind = AttentionKind::latent;
    a.kv_rank = *rank;
    a.q_rank = config.integer({"q_lora_rank"}, 0, detail::kMaxWidth).value_or(0);
    a.nope_dim = config.need({"qk_nope_head_dim"}, 1, detail::kMaxWidth);
    a.rope_dim = config.need({"qk_rope_head_dim"}, 0, detail::kMaxWidth);
    a.value_dim = config.need({"v_head_dim"}, 1, detail::kMaxWidth);
    return;
  }
  a.kv_heads = config.integer(kKvHeads, 1, a.heads).value_or(a.heads);
  if (a.heads % a.kv_heads != 0)
    config.fail(fmt::format("{} key and value heads do not divide the {} heads", a.kv_heads, a.heads));
  const auto head_dim = config.integer({"head_dim"}, 1, detail::kMaxWidth);
  if (!head_dim && model.hidden % a.heads != 0) {
    config.fail(fmt::format("head_dim is missing, and the hidden size {} is not a multiple of the {} heads",
                            model.hidden, a.heads));
  }
  a.head_dim = head_dim.value_or(model.hidden / a.heads);
  a.qkv_bias = config.flag("attention_bias").value_or(family.qkv_bias);
  a.output_bias = a.qkv_bias && family.output_bias;
  const auto norm = config.flag("use_qk_norm");
  if (is_llama4(type)) {
    a.qk_norm = QkNorm::none;  // Its norm of queries and keys has no weights.
  } else if (!norm) {
    a.qk_norm = family.qk_norm;
  } else if (*norm) {
    a.qk_norm = family.qk_norm == QkNorm::full ? QkNorm::full : QkNorm::head;
  }
  a.sinks = type == "gpt_oss";
  a.output_gate = config.flag("attn_output_gate").value_or(type == "qwen3_next");
}

/// Which layers have experts.
void read_expert_layers(const Config& config, ModelSpec& model) {
  const auto layers = static_cast<std::int64_t>(model.layers.size());
  const auto listed = config.integers("moe_layers", 0, layers - 1);
  const auto without = config.integers("mlp_only_layers", 0, layers - 1);
  const Json* frequency = config.find("moe_layer_freq");
  if (frequency != nullptr && frequency->is_array()) {
    const auto pattern = config.integers("moe_layer_freq", 0, 1).value_or(std::vector<std::int64_t>());
    if (pattern.size() != model.layers.size())
      config.fail(fmt::format("moe_layer_freq has {} entries for {} layers", pattern.size(), layers));
    for (std::size_t i = 0; i < pattern.size(); ++i) model.layers[i].moe = pattern[i] == 1;
    return;
  }
  const std::int64_t freq = config.integer({"moe_layer_freq"}, 1, layers).value_or(1);
  const std::int64_t first = config.integer({"first_k_dense_replace"}, 0, layers).value_or(0);
  const std::int64_t step =
      config.integer({"decoder_sparse_step", "interleave_moe_layer_step"}, 1, layers).value_or(1);
  for (std::int64_t i = 0; i < layers; ++i) {
    bool moe = i >= first && i % freq == 0 && (i + 1) % step == 0;
    if (listed) moe = std::find(listed->begin(), listed->end(), i) != listed->end();
    if (without && std::find(without->begin(), without->end(), i) != without->end()) moe = false;
    model.layers[static_cast<std::size_t>(i)].moe = moe;
  }
}

void read_mlp(const Config& config, const Family& family, const std::string& type, ModelSpec& model) {
  constexpr std::int64_t kMax = detail::kMaxWidth;
  model.experts = config.integer(kExperts, 0, detail::kMaxExperts).value_or(0);
  if (model.experts == 0) {
    model.dense_intermediate = config.need({"intermediate_size"}, 1, kMax);
    model.mlp_bias = config.flag("mlp_bias").value_or(false);
    return;
  }
  model.top_k = config.need(kTopK, 1, model.experts);
  read_expert_layers(config, model);
  model.expert_intermediate = config.find("moe_intermediate_size") != nullptr
                                  ? config.need({"moe_intermediate_size"}, 1, kMax)
                                  : config.need({"ffn_config.ffn_hidden_size", "intermediate_size"}, 1, kMax);
  if (model.dense_layers() > 0) {
    model.dense_intermediate = config.find("intermediate_size_mlp") != nullptr
                                   ? config.need({"intermediate_size_mlp"}, 1, kMax)
                                   : config.need({"intermediate_size"}, 1, kMax);
  }
  const auto shared = config.integer({"n_shared_experts", "num_shared_experts"}, 0, 64);
  model.shared_intermediate =
      shared ? *shared * model.expert_intermediate
             : config.integer({"shared_expert_intermediate_size", "shared_intermediate_size"}, 0, kMax)
                   .value_or(is_llama4(type) ? model.expert_intermediate : 0);
  if (model.shared_intermediate > kMax)
    config.fail(
        fmt::format("shared experts have {} columns together; at most {}", model.shared_intermediate, kMax));
  model.shared_gate = (type == "qwen2_moe" || type == "qwen3_next") && model.shared_intermediate > 0;
  model.expert_bias = type == "gpt_oss";
  model.router_bias = type == "gpt_oss";
  model.selection_bias = family.selection_bias || config.text("topk_method") == "noaux_tc" ||
                         config.flag("use_routing_bias").value_or(false);
  model.expert_groups = config.integer({"n_group"}, 1, model.experts).value_or(1);
  model.top_groups = config.integer({"topk_group"}, 1, model.expert_groups).value_or(model.expert_groups);
  if (model.experts % model.expert_groups != 0)
    config.fail(fmt::format("n_group {} does not divide the {} experts", model.expert_groups, model.experts));
}

/// Which layers see only a window, or keep a state.
void read_layer_types(const Config& config, const std::string& type, ModelSpec& model) {
  const auto layers = static_cast<std::int64_t>(model.layers.size());
  const bool next = type == "qwen3_next";
  const bool slides = config.flag("use_sliding_window").value_or(true);
  const auto window =
      config.integer({is_llama4(type) ? "attention_chunk_size" : "sliding_window"}, 1, detail::kMaxTokens);
  if (window && slides) model.window = *window;
  const Json* types = config.find("layer_types");
  if (types != nullptr) {
    if (!types->is_array() || types->size() != model.layers.size())
      config.fail(fmt::format("layer_types: expected a list of {} texts", layers));
    for (std::size_t i = 0; i < types->size(); ++i) {
      const std::string kind = (*types)[i].is_string() ? (*types)[i].get<std::string>() : (*types)[i].dump();
      if (kind == "linear_attention") {
        model.layers[i].attention = LayerAttention::linear;
      } else if (kind == "sliding_attention" || kind == "chunked_attention") {
        model.layers[i].attention = LayerAttention::window;
      } else if (kind != "full_attention" && kind != "attention") {
        config.fail(
            fmt::format("layer_types[{}] is \"{}\"; known are full_attention, sliding_attention, "
                        "chunked_attention, linear_attention",
                        i, kind));
      }
    }
  } else if (next) {
    const std::int64_t every = config.integer({"full_attention_interval"}, 1, layers).value_or(4);
    for (std::int64_t i = 0; i < layers; ++i)
      if ((i + 1) % every != 0) model.layers[static_cast<std::size_t>(i)].attention = LayerAttention::linear;
  } else if (model.window > 0) {
    // gpt-oss begins with a window and alternates; Llama-4 has one layer without in each four; others all.
    const std::int64_t every = type == "gpt_oss" ? 2 : (is_llama4(type) ? 4 : layers + 1);
    for (std::int64_t i = 0; i < layers; ++i)
      if ((i + 1) % every != 0) model.layers[static_cast<std::size_t>(i)].attention = LayerAttention::window;
  }
  const auto has = [&](LayerAttention kind) {
    return std::any_of(model.layers.begin(), model.layers.end(),
                       [kind](const LayerSpec& layer) { return layer.attention == kind; });
  };
  if (has(LayerAttention::window) && model.window == 0)
    config.fail("layer_types has layers with a window, but sliding_window is missing");
  if (!has(LayerAttention::window)) model.window = 0;
  if (!has(LayerAttention::linear)) return;
  model.linear.key_heads = config.need({"linear_num_key_heads"}, 1, detail::kMaxHeads);
  model.linear.value_heads = config.need({"linear_num_value_heads"}, 1, detail::kMaxHeads);
  model.linear.key_dim = config.need({"linear_key_head_dim"}, 1, detail::kMaxWidth);
  model.linear.value_dim = config.need({"linear_value_head_dim"}, 1, detail::kMaxWidth);
  model.linear.conv = config.need({"linear_conv_kernel_dim"}, 1, detail::kMaxWidth);
}

void read_quantization(const Config& config, ModelSpec& model) {
  const std::string method = config.text("quantization_config.quant_method");
  if (method == "fp8") {
    model.weights = config.find("quantization_config.weight_block_size") != nullptr ? WeightFormat::fp8_block
                                                                                    : WeightFormat::fp8;
    model.expert_weights = model.weights;
  } else if (method == "mxfp4") {
    model.expert_weights = WeightFormat::mxfp4;
  } else if (!method.empty()) {
    model.notes.push_back(
        fmt::format("quantization_config with quant_method \"{}\" is passed over: weights count as bf16 "
                    "unless you say otherwise",
                    method));
  }
}

}  // namespace

ModelSpec read_hf_config(const std::string& path) {
  const std::string text = detail::read_text_file(path);
  ModelSpec model;
  Json root;
  try {
    root = Json::parse(text);
  } catch (const Json::parse_error& error) {
    const std::size_t at = std::min(error.byte == 0 ? 0 : error.byte - 1, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    const std::size_t last = text.substr(0, at).rfind('\n');
    throw Error(Errc::io, fmt::format("{}:{}:{}: not valid JSON", path, line,
                                      last == std::string::npos ? at + 1 : at - last));
  }
  if (!root.is_object()) throw Error(Errc::io, fmt::format("{}: expected a JSON object", path));
  const Config config(path, inner_config(root, model));
  const std::string type = config.text("model_type");
  const Family& family = family_of(type, model);
  const std::filesystem::path file(path);
  model.name = file.stem() == "config" && file.has_parent_path() ? file.parent_path().filename().string()
                                                                 : file.stem().string();
  model.description =
      type.empty() ? "Hugging Face configuration." : fmt::format("Hugging Face model of type {}.", type);
  model.source = path;
  model.hidden = config.need(kHidden, 1, detail::kMaxWidth);
  model.layers.resize(static_cast<std::size_t>(config.need(kLayers, 1, detail::kMaxLayers)));
  model.vocab = config.need({"vocab_size"}, 1, detail::kMaxVocab);
  model.tied_embeddings = config.flag("tie_word_embeddings").value_or(family.tied);
  model.norms_per_layer = family.norms;
  read_attention(config, family, type, model);
  read_mlp(config, family, type, model);
  read_layer_types(config, type, model);
  model.mtp_layers = config.integer({"num_nextn_predict_layers", "num_mtp_modules"}, 0, 16).value_or(0);
  read_quantization(config, model);
  return model;
}

}  // namespace shunt

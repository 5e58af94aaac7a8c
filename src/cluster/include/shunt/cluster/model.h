#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shunt {

enum class AttentionKind {
  grouped,  ///< Key and value heads shared by groups of query heads; with as many of each, the plain kind
  latent    ///< Keys and values are stored as one compressed vector per token (MLA)
};

enum class QkNorm {
  none,
  head,  ///< One weight per element of a head, shared by the heads
  full   ///< One weight per element of the whole projection
};

/// What the attention of one layer sees.
enum class LayerAttention {
  full,
  window,  ///< At most ModelSpec::window tokens back
  linear   ///< A state of fixed size instead of keys and values
};

/// Storage format of weights.
enum class WeightFormat { bf16, fp8, fp8_block, int8, mxfp4, nvfp4, int4 };

/// As in presets and options: bf16, fp8, fp8_block, int8, mxfp4, nvfp4, int4.
[[nodiscard]] const std::vector<std::string>& weight_format_names();

/// Bits of one weight with its share of the scales: fp8 8 (scales of whole matrices left out), fp8_block
/// 8 + 32 / 128², mxfp4 4.25, nvfp4 4.5, int4 4.125 (16 bits for 128 weights).
[[nodiscard]] double weight_bits(WeightFormat format) noexcept;

struct AttentionSpec {
  AttentionKind kind = AttentionKind::grouped;
  std::int64_t heads = 0;
  // grouped
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  bool qkv_bias = false;
  bool output_bias = false;
  QkNorm qk_norm = QkNorm::none;
  bool sinks = false;        ///< One learned logit per head
  bool output_gate = false;  ///< The query projection is twice as wide; half of it gates the output
  // latent
  std::int64_t q_rank = 0;  ///< 0: queries are not compressed
  std::int64_t kv_rank = 0;
  std::int64_t nope_dim = 0;
  std::int64_t rope_dim = 0;
  std::int64_t value_dim = 0;
};

/// Gated delta net, as in Qwen3-Next.
struct LinearAttentionSpec {
  std::int64_t key_heads = 0;
  std::int64_t value_heads = 0;
  std::int64_t key_dim = 0;    ///< Of one head
  std::int64_t value_dim = 0;  ///< Of one head
  std::int64_t conv = 0;       ///< Kernel size
};

struct LayerSpec {
  LayerAttention attention = LayerAttention::full;
  bool moe = false;
};

/// A transformer, dense or with experts, as far as its parameters and its memory depend on it.
struct ModelSpec {
  std::string name;
  std::string description;
  std::string source;
  std::vector<std::string> notes;  ///< What was assumed while reading it
  std::int64_t hidden = 0;
  std::int64_t vocab = 0;
  bool tied_embeddings = false;
  std::int64_t learned_positions = 0;  ///< Rows of a learned position embedding; 0 without
  std::int64_t norms_per_layer = 2;
  bool norm_bias = false;  ///< LayerNorm with bias; else one weight per element
  bool gated = true;       ///< MLPs have a gate: three matrices instead of two
  bool mlp_bias = false;   ///< In dense MLPs and shared experts
  std::int64_t dense_intermediate = 0;
  std::int64_t experts = 0;  ///< Routed experts of a layer with experts; 0: a dense model
  std::int64_t top_k = 0;
  std::int64_t expert_intermediate = 0;
  std::int64_t shared_intermediate = 0;  ///< Of all shared experts together
  bool shared_gate = false;
  bool expert_bias = false;
  bool router_bias = false;
  bool selection_bias = false;  ///< Added to the scores for the choice only
  std::int64_t expert_groups = 1;
  std::int64_t top_groups = 1;  ///< Groups that one token may use
  AttentionSpec attention;
  LinearAttentionSpec linear;
  std::int64_t window = 0;
  std::vector<LayerSpec> layers;
  std::int64_t mtp_layers = 0;                       ///< Multi-token prediction modules behind the last layer
  WeightFormat weights = WeightFormat::bf16;         ///< Of the published checkpoint: matrices of layers
  WeightFormat expert_weights = WeightFormat::bf16;  ///< Of the published checkpoint: routed experts

  [[nodiscard]] std::int64_t moe_layers() const noexcept;
  [[nodiscard]] std::int64_t dense_layers() const noexcept;
};

/// Reads a model preset with its tables [architecture] and [attention] (docs/formats.md "Model preset").
/// Errors: Errc::io with file:line:column, as read_model_shape; also where the tables are missing.
[[nodiscard]] ModelSpec read_model(const std::string& path);

/// Reads a Hugging Face config.json. Keys that do not bear on parameters are passed over; a model_type that
/// is not known is counted from its fields alone, which `notes` then says.
/// Errors: Errc::io with the file and, for text that is no JSON, line:column; names the key that is missing (with
///         its synonyms) or out of range, and contradictions between keys.
[[nodiscard]] ModelSpec read_hf_config(const std::string& path);

/// A preset by name, or a file by its path: TOML, a config.json (ends in .json), or a directory that holds one.
/// Errors: Errc::invalid_argument suggests the nearest preset; Errc::io as the readers.
[[nodiscard]] ModelSpec find_model(const std::string& name, const std::string& directory);

}  // namespace shunt

#pragma once

#include <cstdint>

#include <shunt/cluster/model.h>

namespace shunt {

/// One MLP, or one expert.
struct MlpParameters {
  std::int64_t matrices = 0;
  std::int64_t inner_biases = 0;  ///< Of the columns: divided with them
  std::int64_t outer_bias = 0;    ///< Of the result, H

  [[nodiscard]] std::int64_t total() const noexcept { return matrices + inner_biases + outer_bias; }
};

/// An MLP of `intermediate` columns of this model; nothing where that is 0.
[[nodiscard]] MlpParameters mlp_parameters(const ModelSpec& model, std::int64_t intermediate,
                                           bool bias) noexcept;

/// Parameters of one layer, kept apart by how parallel training divides them.
struct LayerParameters {
  std::int64_t attention_heads = 0;  ///< What belongs to query heads: divided by tensor parallelism
  std::int64_t attention_kv = 0;     ///< What belongs to key and value heads; 0 for latent attention
  std::int64_t attention_common =
      0;  ///< On every rank: compressions and their norms, qk norm per head, output bias
  std::int64_t norms = 0;
  std::int64_t dense_mlp = 0;
  std::int64_t router = 0;  ///< Weight and biases; the gate of the shared experts is in `shared_gate`
  std::int64_t experts = 0;
  std::int64_t expert = 0;  ///< One routed expert
  std::int64_t shared = 0;  ///< All shared experts
  std::int64_t shared_gate = 0;

  [[nodiscard]] std::int64_t attention() const noexcept {
    return attention_heads + attention_kv + attention_common;
  }
  [[nodiscard]] std::int64_t total() const noexcept {
    return attention() + norms + dense_mlp + router + experts * expert + shared + shared_gate;
  }
};

[[nodiscard]] LayerParameters layer_parameters(const ModelSpec& model, const LayerSpec& layer);

/// Exact counts. `total` is without the multi-token prediction modules.
struct ParameterCount {
  std::int64_t embedding = 0;
  std::int64_t positions = 0;
  std::int64_t output_head = 0;  ///< 0 where it is tied to the embedding
  std::int64_t attention = 0;
  std::int64_t norms = 0;  ///< With the final one
  std::int64_t dense_mlp = 0;
  std::int64_t router = 0;  ///< With the gates of shared experts
  std::int64_t routed_experts = 0;
  std::int64_t shared_experts = 0;
  std::int64_t total = 0;
  std::int64_t active = 0;  ///< Of one token: top_k experts instead of all, everything else whole
  std::int64_t active_without_input =
      0;                 ///< Without the embedding, of which a token reads one row; so also where it is tied
  std::int64_t mtp = 0;  ///< All modules; embedding and head are the model's own
  std::int64_t mtp_copies = 0;  ///< Copies of embedding and head that checkpoints store with them
};

/// Source: config.json values and the layouts of the published implementations; tests/cluster/parameters_test.cpp
/// holds twenty published totals against it.
[[nodiscard]] ParameterCount count_parameters(const ModelSpec& model);

/// Parameters of one multi-token prediction module: a last layer, the projection of 2 H to H, three norms.
[[nodiscard]] std::int64_t mtp_parameters(const ModelSpec& model);

/// Elements that a layer keeps for each token: keys and values, or the compressed vector; 0 for linear attention.
[[nodiscard]] std::int64_t kv_elements(const ModelSpec& model, const LayerSpec& layer) noexcept;

/// Bytes of all layers for each token, as long as no window is full.
[[nodiscard]] std::int64_t kv_bytes_per_token(const ModelSpec& model, std::int64_t element_bytes) noexcept;

/// Bytes that a sequence keeps whatever its length: the states of linear attention, recurrent in fp32 and
/// convolution in bf16.
[[nodiscard]] std::int64_t state_bytes_per_sequence(const ModelSpec& model) noexcept;

}  // namespace shunt

#include <shunt/cluster/parameters.h>

namespace shunt {
namespace {

std::int64_t norm_size(const ModelSpec& model) {
  return model.hidden * (model.norm_bias ? 2 : 1);
}

void count_linear(const ModelSpec& model, LayerParameters& count) {
  const LinearAttentionSpec& a = model.linear;
  const std::int64_t keys = a.key_heads * a.key_dim;
  const std::int64_t values = a.value_heads * a.value_dim;
  // Queries, keys, values and the gate; two scalars for each value head; the convolution over queries, keys and
  // values; decay and time step of each value head; the norm of a head; the output.
  count.attention_heads = model.hidden * (2 * keys + 2 * values) + model.hidden * 2 * a.value_heads +
                          (2 * keys + values) * a.conv + 2 * a.value_heads + values * model.hidden;
  count.attention_common = a.value_dim;
}

void count_latent(const ModelSpec& model, LayerParameters& count) {
  const AttentionSpec& a = model.attention;
  const std::int64_t query = a.heads * (a.nope_dim + a.rope_dim);
  count.attention_common = model.hidden * (a.kv_rank + a.rope_dim) + a.kv_rank;
  if (a.q_rank > 0) count.attention_common += model.hidden * a.q_rank + a.q_rank;
  count.attention_heads = (a.q_rank > 0 ? a.q_rank : model.hidden) * query +
                          a.kv_rank * a.heads * (a.nope_dim + a.value_dim) +
                          a.heads * a.value_dim * model.hidden;
}

void count_grouped(const ModelSpec& model, LayerParameters& count) {
  const AttentionSpec& a = model.attention;
  const std::int64_t query = a.heads * a.head_dim;
  const std::int64_t kv = a.kv_heads * a.head_dim;
  count.attention_heads = model.hidden * query * (a.output_gate ? 2 : 1) + query * model.hidden;
  count.attention_kv = 2 * model.hidden * kv;
  if (a.qkv_bias) {
    count.attention_heads += query;
    count.attention_kv += 2 * kv;
  }
  if (a.output_bias) count.attention_common += model.hidden;
  if (a.qk_norm == QkNorm::head) count.attention_common += 2 * a.head_dim;
  if (a.qk_norm == QkNorm::full) {
    count.attention_heads += query;
    count.attention_kv += kv;
  }
  if (a.sinks) count.attention_heads += a.heads;
}

}  // namespace

MlpParameters mlp_parameters(const ModelSpec& model, std::int64_t intermediate, bool bias) noexcept {
  if (intermediate == 0) return {};
  const std::int64_t inputs = model.gated ? 2 : 1;
  return {(inputs + 1) * model.hidden * intermediate, bias ? inputs * intermediate : 0,
          bias ? model.hidden : 0};
}

LayerParameters layer_parameters(const ModelSpec& model, const LayerSpec& layer) {
  LayerParameters count;
  if (layer.attention == LayerAttention::linear) {
    count_linear(model, count);
  } else if (model.attention.kind == AttentionKind::latent) {
    count_latent(model, count);
  } else {
    count_grouped(model, count);
  }
  count.norms = model.norms_per_layer * norm_size(model);
  if (!layer.moe) {
    count.dense_mlp = mlp_parameters(model, model.dense_intermediate, model.mlp_bias).total();
    return count;
  }
  count.router = model.hidden * model.experts + (model.router_bias ? model.experts : 0) +
                 (model.selection_bias ? model.experts : 0);
  count.experts = model.experts;
  count.expert = mlp_parameters(model, model.expert_intermediate, model.expert_bias).total();
  count.shared = mlp_parameters(model, model.shared_intermediate, model.mlp_bias).total();
  count.shared_gate = model.shared_gate ? model.hidden : 0;
  return count;
}

std::int64_t mtp_parameters(const ModelSpec& model) {
  if (model.mtp_layers == 0 || model.layers.empty()) return 0;
  return layer_parameters(model, model.layers.back()).total() + 2 * model.hidden * model.hidden +
         3 * norm_size(model);
}

ParameterCount count_parameters(const ModelSpec& model) {
  ParameterCount count;
  count.embedding = model.vocab * model.hidden;
  count.positions = model.learned_positions * model.hidden;
  count.output_head = model.tied_embeddings ? 0 : count.embedding;
  count.norms = norm_size(model);
  std::int64_t active_experts = 0;
  for (const LayerSpec& layer : model.layers) {
    const LayerParameters one = layer_parameters(model, layer);
    count.attention += one.attention();
    count.norms += one.norms;
    count.dense_mlp += one.dense_mlp;
    count.router += one.router + one.shared_gate;
    count.routed_experts += one.experts * one.expert;
    count.shared_experts += one.shared;
    if (layer.moe) active_experts += model.top_k * one.expert;
  }
  const std::int64_t always = count.embedding + count.positions + count.output_head + count.attention +
                              count.norms + count.dense_mlp + count.router + count.shared_experts;
  count.total = always + count.routed_experts;
  count.active = always + active_experts;
  count.active_without_input = count.active - count.positions - count.embedding;
  count.mtp = model.mtp_layers * mtp_parameters(model);
  count.mtp_copies = model.mtp_layers * (count.embedding + count.output_head);
  return count;
}

std::int64_t kv_elements(const ModelSpec& model, const LayerSpec& layer) noexcept {
  if (layer.attention == LayerAttention::linear) return 0;
  const AttentionSpec& a = model.attention;
  return a.kind == AttentionKind::latent ? a.kv_rank + a.rope_dim : 2 * a.kv_heads * a.head_dim;
}

std::int64_t kv_bytes_per_token(const ModelSpec& model, std::int64_t element_bytes) noexcept {
  std::int64_t elements = 0;
  for (const LayerSpec& layer : model.layers) elements += kv_elements(model, layer);
  return elements * element_bytes;
}

std::int64_t state_bytes_per_sequence(const ModelSpec& model) noexcept {
  const LinearAttentionSpec& a = model.linear;
  const std::int64_t recurrent = a.value_heads * a.key_dim * a.value_dim * 4;
  const std::int64_t convolution =
      a.conv == 0 ? 0 : (2 * a.key_heads * a.key_dim + a.value_heads * a.value_dim) * (a.conv - 1) * 2;
  std::int64_t bytes = 0;
  for (const LayerSpec& layer : model.layers)
    if (layer.attention == LayerAttention::linear) bytes += recurrent + convolution;
  return bytes;
}

}  // namespace shunt

#pragma once

#include <shunt/cluster/model.h>
#include <shunt/cluster/parameters.h>

namespace shunt::plan {

/// Bytes of one expert (or of `intermediate` of its columns): matrices in `format`, biases in bf16.
[[nodiscard]] inline double expert_bytes(const ModelSpec& model, std::int64_t intermediate,
                                         WeightFormat format) {
  const MlpParameters expert = mlp_parameters(model, intermediate, model.expert_bias);
  return static_cast<double>(expert.matrices) * weight_bits(format) / 8 +
         2.0 * static_cast<double>(expert.inner_biases + expert.outer_bias);
}

/// Bytes of all weights without multi-token prediction: routed experts in one format, attention, dense MLPs and
/// shared experts in another, everything else in bf16.
[[nodiscard]] inline double checkpoint_bytes(const ModelSpec& model, WeightFormat weights,
                                             WeightFormat expert_weights) {
  const ParameterCount count = count_parameters(model);
  const double matrices = static_cast<double>(count.attention + count.dense_mlp + count.shared_experts);
  const double other = static_cast<double>(count.total - count.routed_experts) - matrices;
  return matrices * weight_bits(weights) / 8 + 2 * other +
         static_cast<double>(model.moe_layers() * model.experts) *
             expert_bytes(model, model.expert_intermediate, expert_weights);
}

}  // namespace shunt::plan

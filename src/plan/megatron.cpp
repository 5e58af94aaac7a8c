#include <algorithm>

#include <shunt/cluster/parameters.h>
#include <shunt/plan/memory.h>

namespace shunt::plan {

MegatronEstimate megatron_estimate(const ModelSpec& model, const Layout& layout, const TrainingOptions& o) {
  const auto real = [](std::int64_t value) { return static_cast<double>(value); };
  const double layers = real(static_cast<std::int64_t>(model.layers.size()));
  const double tp = real(layout.tp);
  const double pp = real(layout.pp);
  double divided = 0;  // By tensor parallelism
  double copied = 0;
  double experts = 0;
  const auto add = [&](const LayerSpec& spec, double share) {
    const LayerParameters layer = layer_parameters(model, spec);
    divided += share * real(layer.attention() + layer.dense_mlp + layer.shared);
    copied += share * real(layer.norms + layer.shared_gate + (spec.moe ? model.hidden * model.experts : 0));
    experts += share * real(layer.experts * layer.expert);
  };
  for (const LayerSpec& layer : model.layers) add(layer, 1 / pp);
  copied += real(model.hidden) / pp;
  if (o.mtp)
    for (std::int64_t i = 0; i < model.mtp_layers; ++i) add(model.layers.back(), 1);
  experts /= real(layout.etp * layout.ep);
  const double embedding = real(model.vocab * model.hidden) / tp;
  const bool two = layout.pp == 1 && !model.tied_embeddings;
  MegatronEstimate estimate;
  estimate.other_parameters = divided / tp + copied + experts;
  estimate.most_loaded_parameters = estimate.other_parameters + (two ? 2 : 1) * embedding;
  const double dense = estimate.most_loaded_parameters - experts;
  // 2 for bf16 weights, 4 for fp32 gradients, 12 for the optimizer, which the distributed one divides.
  estimate.weights_optimizer_bytes =
      o.zero == 0 ? 18 * (dense + experts)
                  : dense * (6 + 12 / real(layout.dp * layout.cp)) + experts * (6 + 12 / real(layout.edp()));
  const double tokens = real(o.micro_batch) * real(o.sequence) / real(layout.cp);
  const double hidden = real(model.hidden);
  const double columns =
      real(model.dense_intermediate > 0 ? model.dense_intermediate : model.expert_intermediate);
  double bytes =
      tokens * hidden * (18 + 4 * columns / hidden) * layers + 8 * tokens * pp + tokens * hidden * pp;
  if (o.chunks > 1) {
    bytes *= 1 + (pp - 1) / (pp * real(o.chunks));
  } else if (layout.pp > 1) {
    bytes *= std::min(1.0, real(o.microbatches) / pp);
  }
  if (layout.pp == 1) bytes += 4 * tokens * hidden * (1 + real(model.vocab) / hidden);
  estimate.activation_bytes = bytes / tp;
  return estimate;
}

}  // namespace shunt::plan

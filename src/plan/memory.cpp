#include <shunt/plan/memory.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include <shunt/cluster/parameters.h>

#include "stage.h"

namespace shunt::plan {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
// Beyond these a result is no longer exact, and no such model exists.
constexpr std::int64_t kMaxParameters = 1'000'000'000'000'000;
constexpr double kMaxBytes = 9e15;

void add_layer(const ModelSpec& model, const LayerSpec& spec, const Layout& layout, StageParameters& stage) {
  const LayerParameters layer = layer_parameters(model, spec);
  const std::int64_t kv_heads = model.attention.kv_heads;
  double kv = static_cast<double>(layer.attention_kv);
  if (kv_heads > 0)
    kv *= static_cast<double>(local_kv_heads(model, layout.tp)) / static_cast<double>(kv_heads);
  const double attention = static_cast<double>(layer.attention_heads) / static_cast<double>(layout.tp) + kv +
                           static_cast<double>(layer.attention_common);
  const std::int64_t columns = spec.moe ? model.shared_intermediate : model.dense_intermediate;
  const double matrices =
      attention + static_cast<double>(mlp_parameters(model, columns / layout.tp, model.mlp_bias).total());
  const double other = static_cast<double>(layer.norms + layer.router + layer.shared_gate);
  double experts = 0;
  if (spec.moe) {
    const std::int64_t places = (model.experts + layout.redundant_experts) / layout.ep;
    const std::int64_t one =
        mlp_parameters(model, model.expert_intermediate / layout.etp, model.expert_bias).total();
    experts = static_cast<double>(places) * static_cast<double>(one);
    ++stage.moe_layers;
  }
  ++stage.layers;
  stage.matrices += matrices;
  stage.other += other;
  stage.experts += experts;
  stage.largest_layer = std::max(stage.largest_layer, matrices + other + experts);
}

}  // namespace

std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept {
  return (a + b - 1) / b;
}

std::int64_t local_kv_heads(const ModelSpec& model, std::int64_t tp) noexcept {
  return std::max<std::int64_t>(model.attention.kv_heads / tp, 1);
}

std::int64_t first_layer(const Layout& layout, std::int64_t stage) {
  return std::accumulate(layout.stage_layers.begin(), layout.stage_layers.begin() + stage, std::int64_t{0});
}

StageParameters stage_parameters(const ModelSpec& model, const Layout& layout, std::int64_t stage, bool mtp) {
  StageParameters result;
  const std::int64_t begin = first_layer(layout, stage);
  const std::int64_t end = begin + layout.stage_layers[static_cast<std::size_t>(stage)];
  for (std::int64_t i = begin; i < end; ++i)
    add_layer(model, model.layers[static_cast<std::size_t>(i)], layout, result);
  const bool last = stage == layout.pp - 1;
  const auto table = static_cast<double>(ceil_div(model.vocab, layout.tp) * model.hidden);
  const double norm = static_cast<double>(model.hidden) * (model.norm_bias ? 2 : 1);
  if (stage == 0) result.other += table + static_cast<double>(model.learned_positions * model.hidden);
  // A tied head on another stage than the embedding is a copy of it.
  if (last) result.other += norm + (model.tied_embeddings && layout.pp == 1 ? 0 : table);
  if (last && mtp) {
    for (std::int64_t i = 0; i < model.mtp_layers; ++i) {
      add_layer(model, model.layers.back(), layout, result);
      --result.layers;
      result.matrices +=
          2 * static_cast<double>(model.hidden * model.hidden) / static_cast<double>(layout.tp);
      result.other += 3 * norm;
    }
    // The modules embed tokens too; the table is shared where it is on this stage.
    if (model.mtp_layers > 0 && layout.pp > 1 && !model.tied_embeddings) result.other += table;
  }
  return result;
}

const std::vector<std::string>& schedule_names() {
  static const std::vector<std::string> names = {"gpipe", "1f1b",  "interleaved",
                                                 "zb-h1", "zb-h2", "dualpipe"};
  return names;
}
const std::vector<std::string>& recompute_names() {
  static const std::vector<std::string> names = {"none", "selective", "full"};
  return names;
}
const std::vector<std::string>& optimizer_names() {
  static const std::vector<std::string> names = {"adam", "adam-bf16", "adam-8bit", "muon", "sgd"};
  return names;
}
const std::vector<std::string>& all_to_all_names() {
  static const std::vector<std::string> names = {"none", "nccl", "deepep-ll", "pplx", "shunt"};
  return names;
}

std::int64_t optimizer_bytes(Optimizer optimizer) noexcept {
  switch (optimizer) {
    case Optimizer::adam:
      return 12;  // fp32 weights, two fp32 moments
    case Optimizer::adam_bf16:
      return 8;  // fp32 weights, two bf16 moments
    case Optimizer::adam_8bit:
      return 6;  // fp32 weights, two 8 bit moments
    case Optimizer::muon:
      return 8;  // fp32 weights, fp32 momentum
    case Optimizer::sgd:
      return 4;  // fp32 weights
  }
  return 12;
}

double StageMemory::total() const noexcept {
  return weights + expert_weights + redundant_experts + gradients + optimizer + gathered_weights +
         activations + router + logits + temporary + kv_cache + states + communication + other +
         fragmentation;
}

double MemoryPlan::budget() const noexcept {
  return static_cast<double>(options.capacity_bytes) * (options.serving ? options.inference.utilization : 1);
}

MemoryPlan plan_memory(const ModelSpec& model, const MemoryOptions& options) {
  if (count_parameters(model).total > kMaxParameters)
    throw Error(Errc::invalid_argument,
                fmt::format("{} has {} parameters; at most {} can be planned", model.name,
                            count_parameters(model).total, kMaxParameters));
  MemoryPlan plan;
  plan.options = options;
  check_range("fragmentation", options.fragmentation, 0.0, 1.0);
  check_range("library bytes", options.library_bytes, 0.0, 1e12);
  check_range<std::int64_t>("GPU memory", options.capacity_bytes, 0, std::int64_t{1} << 44);
  if (options.other_bytes < 0) plan.options.other_bytes = (options.serving ? 3.5 : 1.0) * kGiB;
  check_range("other bytes", plan.options.other_bytes, 0.0, 1e12);
  if (!options.serving && options.layout.redundant_experts != 0)
    throw Error(Errc::invalid_argument,
                "redundant experts are for serving; training has one copy per edp rank");
  if (options.serving && options.layout.cp != 1)
    throw Error(Errc::invalid_argument,
                fmt::format("cp {} is for training; serving takes 1", options.layout.cp));
  plan.layout = resolve(options.layout, model);
  if (options.serving) {
    plan_serving(model, plan);
  } else {
    plan_training(model, plan);
    plan.megatron = megatron_estimate(model, plan.layout, plan.options.training);
  }
  for (StageMemory& stage : plan.stages) {
    if (plan.layout.world() > 1) stage.communication += options.library_bytes;
    stage.other = plan.options.other_bytes;
    stage.fragmentation = options.fragmentation * (stage.gathered_weights + stage.activations + stage.router +
                                                   stage.logits + stage.temporary + stage.communication);
    if (!(stage.total() < kMaxBytes))
      throw Error(Errc::invalid_argument,
                  fmt::format("stage {} would need {:.3g} bytes on one GPU; plans end at {:.0g}", stage.stage,
                              stage.total(), kMaxBytes));
  }
  for (std::size_t i = 0; i < plan.stages.size(); ++i)
    if (plan.stages[i].total() > plan.stages[plan.worst].total()) plan.worst = i;
  if (!options.serving || options.capacity_bytes == 0) return plan;
  plan.kv_budget = std::numeric_limits<double>::max();
  for (const StageMemory& stage : plan.stages) {
    const double wanted = stage.kv_cache + stage.states;
    const double left = plan.budget() - (stage.total() - wanted);
    plan.kv_budget = std::min(plan.kv_budget, left);
    const double one = wanted / static_cast<double>(plan.options.inference.max_sequences);
    const auto fit = static_cast<std::int64_t>(std::max(0.0, one > 0 ? std::floor(left / one) : 0));
    plan.kv_sequences = stage.stage == 0 ? fit : std::min(plan.kv_sequences, fit);
  }
  plan.kv_budget = std::max(plan.kv_budget, 0.0);
  return plan;
}

}  // namespace shunt::plan

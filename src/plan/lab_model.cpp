#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/plan/lab.h>

// The lab's formulas as they stand, also where they are wrong: the step leaves out the bubble, more data parallelism
// makes its all-reduce faster, all pipeline traffic goes through the cards of one node, and dense weights are divided
// by ep.
namespace shunt::plan::lab {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
constexpr double kActivationMultiplier = 2.0;
constexpr double kMoeActivationMultiplier = 1.5;
constexpr double kOptimizerMultiplier = 2.5;
constexpr double kComputeCoefficient = 2.5e-4;
constexpr double kSafetyGb = 4.0;

double real(std::int64_t value) {
  return static_cast<double>(value);
}

std::vector<std::int64_t> split_evenly(std::int64_t total, std::int64_t parts) {
  std::vector<std::int64_t> result(static_cast<std::size_t>(parts), total / parts);
  for (std::int64_t i = 0; i < total % parts; ++i) ++result[static_cast<std::size_t>(i)];
  return result;
}

[[noreturn]] void refuse(const Plan& plan, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("plan \"{}\": {}", plan.name, why));
}

void check(const Plan& plan, const Model& model) {
  for (const std::int64_t value : {plan.dp, plan.pp, plan.tp, plan.ep, plan.microbatches,
                                   plan.microbatch_sequences, plan.experts_per_gpu})
    if (value < 1) refuse(plan, fmt::format("{} where a count of at least 1 is expected", value));
  if (!(plan.capacity_factor > 0))
    refuse(plan, fmt::format("capacity factor {} must be above 0", plan.capacity_factor));
  for (const double fraction : {plan.dense_checkpoint_fraction, plan.moe_checkpoint_fraction})
    if (!(fraction > 0 && fraction <= 1))
      refuse(plan, fmt::format("checkpoint fraction {} must be in (0, 1]", fraction));
  if (plan.stage_layers.empty()) return;
  if (static_cast<std::int64_t>(plan.stage_layers.size()) != plan.pp)
    refuse(plan, fmt::format("stage_layers has {} entries for pp {}", plan.stage_layers.size(), plan.pp));
  const std::int64_t sum =
      std::accumulate(plan.stage_layers.begin(), plan.stage_layers.end(), std::int64_t{0});
  if (sum != model.layers) {
    refuse(plan, fmt::format("stage_layers must sum to total layers: they sum to {}, {} has {}", sum,
                             model.name, model.layers));
  }
}

void find_hotspots(const Cluster& cluster, const Plan& plan, double load, Evaluation& e) {
  if (!e.world_size_matches) {
    e.hotspots.push_back(
        fmt::format("the plan is for {} GPUs, the cluster has {}", e.world_size, cluster.gpus()));
  }
  if (e.nodes_per_stage < 1)
    e.hotspots.push_back(fmt::format("a stage has {:.3g} of a node: stages share nodes", e.nodes_per_stage));
  if (std::abs(e.gpus_per_stage - real(e.tp_ep_product)) > 1e-3) {
    e.hotspots.push_back(
        fmt::format("a stage has {:.4g} GPUs, its TP x EP grid {}", e.gpus_per_stage, e.tp_ep_product));
  }
  if (e.bubble_fraction > 0.2)
    e.hotspots.push_back(fmt::format("pipeline bubble {:.1f} % of the step", 100 * e.bubble_fraction));
  if (e.memory_margin_gb < 0)
    e.hotspots.push_back(fmt::format("needs {:.1f} GB more memory than a GPU has", -e.memory_margin_gb));
  if (plan.cross_node_ep)
    e.hotspots.push_back(fmt::format("experts exchange tokens across nodes over {}", cluster.interconnect));
  if (!e.load_balance_ok)
    e.hotspots.push_back(
        fmt::format("{:.1f} tokens per expert, above the capacity of {:.1f}", load, e.capacity_limit_tokens));
  if (e.dp_time_ms > 0.6 * e.compute_ms)
    e.hotspots.push_back(
        fmt::format("gradient exchange takes {:.2g} times the computation", e.dp_time_ms / e.compute_ms));
  if (e.pipeline_time_ms > 0.4 * e.compute_ms)
    e.hotspots.push_back(fmt::format("pipeline transfers take {:.2g} times the computation",
                                     e.pipeline_time_ms / e.compute_ms));
  e.affinity = {
      fmt::format("{:.4g} nodes for a replica, {:.4g} for a stage", e.nodes_per_replica, e.nodes_per_stage),
      fmt::format("TP x EP grid of {} GPUs, {:.4g} are there", e.tp_ep_product, e.gpus_per_stage),
      plan.cross_node_ep ? fmt::format("experts reach across nodes over {}", cluster.interconnect)
                         : std::string("experts stay on NVLink and NVSwitch"),
  };
  if (e.memory_margin_gb < 8) e.notes.emplace_back("little memory to spare");
  if (e.bubble_fraction < 0.1 && plan.microbatches >= 2 * plan.pp)
    e.notes.emplace_back("the pipeline is well filled");
}

}  // namespace

Evaluation evaluate(const Cluster& cluster, const Model& model, const Plan& plan) {
  check(plan, model);
  Evaluation e;
  e.plan_name = plan.name;
  e.dp = plan.dp;
  e.pp = plan.pp;
  e.tp = plan.tp;
  e.ep = plan.ep;
  e.world_size = plan.dp * plan.pp * plan.tp * plan.ep;
  e.world_size_matches = e.world_size == cluster.gpus();
  e.nodes_per_replica = real(cluster.nodes) / real(plan.dp);
  e.nodes_per_stage = e.nodes_per_replica / real(plan.pp);
  e.gpus_per_stage = e.nodes_per_stage * real(cluster.gpus_per_node);
  e.tp_ep_product = plan.tp * plan.ep;
  e.stage_layers = plan.stage_layers.empty() ? split_evenly(model.layers, plan.pp) : plan.stage_layers;
  e.moe_layers_per_stage = split_evenly(model.moe_layers, plan.pp);

  const double sequence = real(model.sequence);
  const double micro = real(plan.microbatch_sequences);
  const double ep = real(plan.ep);
  const double hidden = real(model.hidden) / real(plan.tp);
  const double dense_bytes =
      hidden * sequence * (micro / ep) * real(model.dtype_bytes) * kActivationMultiplier;
  const double moe_tokens = sequence * micro * real(model.top_k) / ep;
  const double moe_bytes = hidden * moe_tokens * real(model.dtype_bytes) * kMoeActivationMultiplier;
  double activations = 0;
  for (std::size_t i = 0; i < e.stage_layers.size(); ++i) {
    e.dense_layers_per_stage.push_back(
        std::max<std::int64_t>(e.stage_layers[i] - e.moe_layers_per_stage[i], 0));
    activations = std::max(activations,
                           real(e.dense_layers_per_stage[i]) * dense_bytes * plan.dense_checkpoint_fraction +
                               real(e.moe_layers_per_stage[i]) * moe_bytes * plan.moe_checkpoint_fraction);
  }
  const double parameter_bytes = model.params_billion * 1e9 * real(model.dtype_bytes);
  const double largest = real(*std::max_element(e.stage_layers.begin(), e.stage_layers.end()));
  e.params_gb = parameter_bytes * largest / real(model.layers) / real(e.tp_ep_product) / kGiB;
  e.optimizer_gb = kOptimizerMultiplier * e.params_gb;
  e.grad_gb = e.params_gb;
  e.activation_gb = activations / kGiB + kSafetyGb;
  e.total_memory_gb = e.params_gb + e.optimizer_gb + e.grad_gb + e.activation_gb;
  e.memory_margin_gb = cluster.hbm_gb - e.total_memory_gb;

  const double microbatches = real(plan.microbatches);
  const double stages = real(plan.pp);
  e.bubble_fraction = plan.pp == 1 ? 0 : (stages - 1) / (microbatches + stages - 1);
  e.compute_ms = real(model.layers) * sequence * micro / real(e.tp_ep_product) * kComputeCoefficient;
  e.dp_payload_gb = parameter_bytes / real(plan.dp) / kGiB;
  e.dp_time_ms = e.dp_payload_gb / cluster.nic_gb_per_s() * 1000;
  e.pipeline_payload_gb =
      real(model.hidden) * sequence * micro * real(model.dtype_bytes) * microbatches * (stages - 1) / kGiB;
  e.pipeline_time_ms = e.pipeline_payload_gb / cluster.nic_gb_per_s() * 1000;
  e.ep_payload_gb =
      moe_tokens * hidden * real(model.dtype_bytes) * microbatches * std::max(ep - 1, 1.0) / kGiB;
  e.ep_cross_node = plan.cross_node_ep;
  e.ep_time_ms =
      e.ep_payload_gb / (plan.cross_node_ep ? cluster.nic_gb_per_s() : cluster.nvlink_gb_per_s()) * 1000;
  e.step_ms = e.compute_ms + e.dp_time_ms + e.pipeline_time_ms + e.ep_time_ms;
  e.tokens_per_s = sequence * micro * microbatches * real(plan.dp) / (e.step_ms / 1000);

  e.tokens_per_gpu = sequence * micro / ep;
  e.tokens_per_expert = e.tokens_per_gpu * real(model.top_k) / real(plan.experts_per_gpu);
  e.capacity_limit_tokens =
      e.tokens_per_gpu / real(plan.experts_per_gpu) * (plan.capacity_factor + real(model.top_k) - 1);
  e.load_balance_ok = e.tokens_per_expert <= e.capacity_limit_tokens + 1e-6;
  find_hotspots(cluster, plan, e.tokens_per_expert, e);
  return e;
}

}  // namespace shunt::plan::lab

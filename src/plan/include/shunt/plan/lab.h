#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <shunt/plan/report.h>

/// The cost model and the targets of the MoE parallelism planner lab (labs/moe_parallelism of
/// cfregly/ai-performance-engineering at eb2e8d4a), number by number, so that results can be compared with it. It is
/// not ours: docs/planner.md says where it differs from what a cluster does.
namespace shunt::plan::lab {

struct Cluster {
  std::string name;
  std::int64_t nodes = 0;
  std::int64_t gpus_per_node = 0;
  std::int64_t nics_per_node = 0;
  double nic_gbps = 0;  ///< Gb/s of one card
  double nvlink_tb_per_s = 0;
  double hbm_gb = 0;
  std::string interconnect;

  [[nodiscard]] std::int64_t gpus() const noexcept { return nodes * gpus_per_node; }
  [[nodiscard]] double nic_gb_per_s() const noexcept {
    return nic_gbps / 8 * static_cast<double>(nics_per_node);
  }
  [[nodiscard]] double nvlink_gb_per_s() const noexcept { return nvlink_tb_per_s * 1000; }
};

struct Model {
  std::string name;
  double params_billion = 0;
  std::int64_t hidden = 0;
  std::int64_t sequence = 0;
  std::int64_t layers = 0;
  std::int64_t moe_layers = 0;
  std::int64_t experts = 0;
  std::int64_t top_k = 2;
  std::int64_t dtype_bytes = 2;
};

struct Plan {
  std::string name;
  std::int64_t dp = 1, pp = 1, tp = 1, ep = 1;
  std::int64_t microbatch_sequences = 1;
  std::int64_t microbatches = 1;
  std::int64_t experts_per_gpu = 1;
  double capacity_factor = 1;
  double dense_checkpoint_fraction = 1;
  double moe_checkpoint_fraction = 1;
  std::vector<std::int64_t> stage_layers;  ///< Empty: evenly
  bool cross_node_ep = false;
};

/// The lab's PlanReport. Its GB are GiB, and its bandwidths count as GiB/s.
struct Evaluation {
  std::string plan_name;
  std::int64_t world_size = 0;
  bool world_size_matches = false;
  std::int64_t dp = 0, pp = 0, tp = 0, ep = 0;
  double nodes_per_replica = 0;
  double nodes_per_stage = 0;
  double gpus_per_stage = 0;
  std::int64_t tp_ep_product = 0;
  std::vector<std::int64_t> stage_layers;
  std::vector<std::int64_t> dense_layers_per_stage;
  std::vector<std::int64_t> moe_layers_per_stage;
  double bubble_fraction = 0;
  double compute_ms = 0;
  double dp_time_ms = 0;
  double pipeline_time_ms = 0;
  double ep_time_ms = 0;
  double step_ms = 0;
  double tokens_per_s = 0;
  double params_gb = 0;
  double optimizer_gb = 0;
  double grad_gb = 0;
  double activation_gb = 0;
  double total_memory_gb = 0;
  double memory_margin_gb = 0;
  bool ep_cross_node = false;
  double tokens_per_gpu = 0;
  double tokens_per_expert = 0;
  double capacity_limit_tokens = 0;
  bool load_balance_ok = false;
  double ep_payload_gb = 0;  ///< Not in the lab's report: what the expert exchange moves in a step
  double dp_payload_gb = 0;
  double pipeline_payload_gb = 0;
  std::vector<std::string> hotspots;
  std::vector<std::string> affinity;
  std::vector<std::string> notes;
};

/// Errors: Errc::invalid_argument for stage layers that do not have length pp or do not sum to the layers, fractions
///         outside (0, 1], and counts below 1.
[[nodiscard]] Evaluation evaluate(const Cluster& cluster, const Model& model, const Plan& plan);

struct Spec {
  std::string name;
  Cluster cluster;
  Model model;
};

/// gpt_oss_120b_gb200_ib (the default), gpt_oss_120b_gb200_ethernet, deepseek_r1_678b_gb200_ib, dgx_a100_175b.
[[nodiscard]] const std::vector<Spec>& specs();
/// Errors: Errc::invalid_argument suggests the nearest and lists those there are.
[[nodiscard]] const Spec& find_spec(std::string_view name);

/// Settings that the lab gives a fabric, with its guess of what they reach.
struct EnvProfile {
  std::string name;
  std::string fabric;
  double efficiency = 1;
  double handshake_ms = 0;
  std::vector<std::pair<std::string, std::string>> env;
};

enum class Role { baseline, optimized };

/// Of alltoall_tuning (nvlink, ib, efa) and moe_vllm_env (nvlink, nvl72).
[[nodiscard]] const EnvProfile& alltoall_profile(Role role, std::string_view fabric);
[[nodiscard]] const EnvProfile& vllm_profile(Role role, std::string_view fabric);
[[nodiscard]] Cluster vllm_cluster(std::string_view fabric);

enum class Kind { plan, alltoall, vllm };

struct Target {
  std::string name;  ///< Without the prefix "moe_parallelism:"
  Kind kind = Kind::plan;
  std::string fixed_spec;  ///< Not empty where the lab ignores --spec
  Plan baseline;
  Plan optimized;
  std::vector<std::string>
      fabrics{};  ///< That Settings::fabric may name, the default first; empty: it has none
};

/// The nine targets, by name.
[[nodiscard]] const std::vector<Target>& targets();
/// Target by its name, with or without "moe_parallelism:" or "labs/moe_parallelism:". Errors: as find_spec.
[[nodiscard]] const Target& find_target(std::string_view name);

/// What --target-extra-arg and the options of `run` set.
struct Settings {
  std::string spec = "gpt_oss_120b_gb200_ib";
  /// One of the target's fabrics. gpt_gb200: ib, ethernet or both, which are two runs (the lab's
  /// custom_gpt_oss_gb200.py). Empty: the target's first, for environments $MPE_FABRIC where it is one of theirs.
  std::string fabric;
  bool validate = false;
  // moe_vllm_env's command; 0: the fabric's own value.
  std::string model = "gpt-oss-20b/original/";
  std::int64_t ngpu = 0;
  std::int64_t tp = 8;
  std::int64_t pp = 0;
  std::int64_t max_len = 8192;
  std::int64_t max_seqs = 0;
  double gpu_util = 0.92;
};

/// One half of a pair.
struct Run {
  const Target* target = nullptr;
  Role role = Role::baseline;
  std::string spec;
  std::string fabric;     ///< Empty where the target has none to choose
  Evaluation evaluation;  ///< Of kinds alltoall and vllm with the collective in place of ep_time_ms
  const EnvProfile* profile = nullptr;
  double collective_gb_per_s = 0;  ///< Base bandwidth times efficiency
  double exchange_gb_per_s = 0;    ///< What the exchange of experts goes over: the same, or that of a plan
  double network_gb_per_s = 0;     ///< All cards of a node
};

/// Errors: Errc::invalid_argument as evaluate, find_spec and the profiles; a fabric that the target does not have;
///         "both", which is two runs; more tp * pp than GPUs to serve with.
[[nodiscard]] Run run(const Target& target, Role role, const Settings& settings);

/// Both halves of every target, compared: one row for each half, one for each pair, exports and commands for the
/// environment targets. `ok` is false where settings.validate finds a check that a baseline passes and its
/// optimized half does not.
struct Outcome {
  Report report{"plan_run"};
  bool ok = true;
};
[[nodiscard]] Outcome run_targets(const std::vector<std::pair<const Target*, Settings>>& given);

/// The same pairs by our own cost model (step_time, plan_memory), beside the lab's numbers, with a row for each item on
/// which the two disagree and why. A half that our planner refuses has no times and the reason in their place.
[[nodiscard]] Outcome run_targets_by_our_model(const std::vector<std::pair<const Target*, Settings>>& given);

}  // namespace shunt::plan::lab

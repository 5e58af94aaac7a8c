#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/cluster/model.h>
#include <shunt/plan/layout.h>
#include <shunt/plan/report.h>

namespace shunt::plan {

enum class Schedule { gpipe, one_f_one_b, interleaved, zb_h1, zb_h2, dualpipe };
/// gpipe, 1f1b, interleaved, zb-h1, zb-h2, dualpipe.
[[nodiscard]] const std::vector<std::string>& schedule_names();

enum class Recompute { none, selective, full };
/// none, selective, full.
[[nodiscard]] const std::vector<std::string>& recompute_names();

/// What `selective` computes again in the backward pass instead of keeping it.
struct RecomputeParts {
  bool attention_scores = true;
  bool norms = false;           ///< Outputs of the norms before attention and MLP
  bool activations = false;     ///< Products of the activation functions
  bool latent_queries = false;  ///< Queries, keys and values of latent attention, from the compressed vectors
  bool mlp = false;             ///< All of dense MLPs
  bool moe = false;             ///< All of layers of experts but their input
};

enum class Optimizer { adam, adam_bf16, adam_8bit, muon, sgd };
/// adam, adam-bf16, adam-8bit, muon, sgd.
[[nodiscard]] const std::vector<std::string>& optimizer_names();
/// Bytes per parameter, with the fp32 copy of the weights: 12, 8, 6, 8, 4.
[[nodiscard]] std::int64_t optimizer_bytes(Optimizer optimizer) noexcept;

enum class AllToAll { none, nccl, deepep_low_latency, pplx, shunt };
/// none, nccl, deepep-ll, pplx, shunt.
[[nodiscard]] const std::vector<std::string>& all_to_all_names();

struct TrainingOptions {
  std::int64_t micro_batch = 1;  ///< Sequences of one microbatch
  std::int64_t microbatches =
      0;                         ///< Of one step, on each data-parallel rank; 0: as many as fill the pipeline
  std::int64_t sequence = 4096;  ///< Tokens
  std::int64_t zero = 1;         ///< 0: nothing, 1: optimizer states, 2: gradients too, 3: weights too
  std::int64_t gradient_bytes = 4;  ///< 4: fp32 main gradients
  Optimizer optimizer = Optimizer::adam;
  Schedule schedule = Schedule::one_f_one_b;
  std::int64_t chunks = 1;  ///< Of a stage, for `interleaved`
  Recompute recompute = Recompute::none;
  RecomputeParts parts;
  bool sequence_parallel = true;  ///< Where tp > 1: norms and dropout divided among the ranks too
  bool flash_attention = true;    ///< Scores are never stored
  bool dropout = false;           ///< Masks of one byte
  double imbalance = 1;           ///< Rows of the busiest rank over the mean, or the capacity factor
  bool mtp = false;               ///< With the multi-token prediction modules, on the last stage
};

struct ServingOptions {
  WeightFormat weights = WeightFormat::bf16;  ///< Attention, dense MLPs, shared experts
  WeightFormat expert_weights = WeightFormat::bf16;
  std::int64_t kv_element_bytes = 2;  ///< 1 or 2
  std::int64_t kv_block = 16;         ///< Tokens; a sequence takes whole blocks
  std::int64_t max_sequences = 256;   ///< At once, on each data-parallel rank
  std::int64_t max_length = 8192;     ///< Tokens of one sequence
  std::int64_t batch_tokens = 8192;   ///< Of one forward pass, on each data-parallel rank
  double utilization = 0.9;           ///< Share of the GPU's memory that may be used
  AllToAll all_to_all = AllToAll::nccl;
  std::int64_t dispatch_tokens = 128;  ///< Most tokens of a rank in one step, for deepep-ll, pplx and shunt
  double imbalance = 1;
  bool mtp = false;
};

struct MemoryOptions {
  Layout layout;
  bool serving = false;
  TrainingOptions training;         ///< Read where !serving
  ServingOptions inference;         ///< Read where serving
  std::int64_t capacity_bytes = 0;  ///< Of one GPU; 0: not compared
  double library_bytes = 392e6;     ///< Of NCCL and the like, on more than one GPU
  double other_bytes = -1;          ///< Context, kernels; below 0: 1 GiB for training, 3.5 GiB for serving
  double fragmentation = 0.05;      ///< Of what is allocated and freed again while it runs
};

/// Bytes of one GPU of a stage, by what they are for.
struct StageMemory {
  std::int64_t stage = 0;
  std::int64_t layers = 0;
  double parameters = 0;      ///< Count, not bytes: what this GPU holds, ZeRO aside
  double weights = 0;         ///< All but routed experts
  double expert_weights = 0;  ///< Routed experts, without redundant ones
  double redundant_experts = 0;
  double gradients = 0;
  double optimizer = 0;
  double gathered_weights = 0;  ///< ZeRO 3: layers that are whole for a moment
  double activations = 0;       ///< Kept for the backward pass; in serving alive at the peak of a pass
  double router = 0;            ///< Logits, scores and choices of routers; not in `activations`
  double logits = 0;
  double temporary = 0;  ///< Gradient of the largest tensor; with full recomputation one layer
  double kv_cache = 0;
  double states = 0;         ///< Of linear attention
  double communication = 0;  ///< Buffers of all-to-all, all-gather, pipeline, libraries
  double other = 0;
  double fragmentation = 0;
  double in_flight = 0;  ///< Microbatches whose activations it keeps at the peak

  [[nodiscard]] double total() const noexcept;
};

/// What Megatron-LM's own estimate says of the same training layout: it knows no experts in its activations, and
/// assumes selective recomputation with sequence parallelism.
struct MegatronEstimate {
  double most_loaded_parameters = 0;
  double other_parameters = 0;  ///< Of stages without embedding
  double weights_optimizer_bytes = 0;
  double activation_bytes = 0;
};

struct MemoryPlan {
  Layout layout;          ///< Resolved
  MemoryOptions options;  ///< With its defaults filled in
  std::vector<StageMemory> stages;
  std::size_t worst = 0;          ///< The stage that needs most
  MegatronEstimate megatron;      ///< Training only
  double kv_bytes_per_token = 0;  ///< Serving: of the worst stage's GPU, windows not full
  double kv_budget = 0;           ///< Serving: what the cache may take at most; 0 without a capacity
  std::int64_t kv_sequences = 0;  ///< Serving: sequences of max_length that fit it

  [[nodiscard]] const StageMemory& worst_stage() const { return stages[worst]; }
  /// What one GPU may use: its memory, in serving times the utilization.
  [[nodiscard]] double budget() const noexcept;
};

/// Computes the memory of one GPU of every stage.
/// Errors: Errc::invalid_argument for layouts that do not fit the model (see resolve), and options out of range
///         or against each other.
/// Source: docs/planner.md has the formulas.
[[nodiscard]] MemoryPlan plan_memory(const ModelSpec& model, const MemoryOptions& options);

/// Source: megatron/training/theoretical_memory_usage.py of NVIDIA/Megatron-LM at d98e8a64; arXiv 2205.05198, table 2.
[[nodiscard]] MegatronEstimate megatron_estimate(const ModelSpec& model, const Layout& layout,
                                                 const TrainingOptions& options);

/// `gpu` names what `capacity_bytes` is of; empty without.
[[nodiscard]] Report report_memory(const ModelSpec& model, const MemoryPlan& plan, const std::string& gpu);

/// Buffers of one rank for one layer's dispatch and combine, all `experts` (with redundant ones) over `ranks`.
/// Source: deepep_low_latency: csrc/config.hpp of deepseek-ai/DeepEP at dd758ca; pplx: all_to_all of pplx-kernels at
///         12cecfda, between nodes, fp8 with scales; shunt: docs/architecture.md, packed rows in bf16 on one node.
[[nodiscard]] double all_to_all_bytes(AllToAll method, std::int64_t experts, std::int64_t top_k,
                                      std::int64_t hidden, std::int64_t tokens, std::int64_t ranks,
                                      std::int64_t tp);

}  // namespace shunt::plan

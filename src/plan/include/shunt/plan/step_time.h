#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/machine.h>
#include <shunt/cluster/model.h>
#include <shunt/cluster/roofline.h>
#include <shunt/plan/layout.h>
#include <shunt/plan/memory.h>
#include <shunt/plan/report.h>

namespace shunt::plan {

enum class Phase { training, prefill, decode };
/// training, prefill, decode.
[[nodiscard]] const std::vector<std::string>& phase_names();

/// What prices dispatch and combine.
enum class ExchangeKernels {
  automatic,  ///< Fitted kernels where there are fits and they serve the group, else tiers (with a note why)
  tiers,      ///< Bytes over data sheet rates: exchange_time()
  normal,     ///< Fitted: DeepEP normal
  low_latency,  ///< Fitted: DeepEP low latency
  nvlink        ///< Fitted: TensorRT-LLM's one-sided kernel in one NVLink domain
};
/// automatic, tiers, normal, low_latency, nvlink.
[[nodiscard]] const std::vector<std::string>& exchange_kernel_names();

/// What a step does, and how. Ranks count up tp, cp, dp, pp (experts: etp, ep, edp, pp), so that tp has neighbours.
struct StepTimeOptions {
  Phase phase = Phase::training;
  Layout layout;
  TrainingOptions training;  ///< Read in training; its `imbalance` too

  // Serving. Numbers of one data-parallel rank (tp GPUs that share their tokens).
  std::int64_t prompt = 4096;         ///< Prefill: tokens of one prompt
  std::int64_t cached = 0;            ///< Prefill: of these, tokens that are in the cache already
  std::int64_t batch_tokens = 16384;  ///< Prefill: tokens of one pass, all prompts; whole prompts
  std::int64_t sequences = 128;       ///< Decode: sequences at once
  std::int64_t context = 4096;        ///< Decode: mean tokens in the cache of each
  std::int64_t drafts = 0;            ///< Decode: tokens that speculation adds to a step of a sequence
  double acceptance = 0;  ///< Decode: probability that a draft is accepted, given those before it, in [0, 1]
  WeightFormat weights = WeightFormat::bf16;         ///< Serving: attention, dense MLPs, shared experts
  WeightFormat expert_weights = WeightFormat::bf16;  ///< Serving: routed experts
  std::int64_t kv_element_bytes = 2;
  double imbalance = 1;              ///< Serving: load of the busiest rank over the mean, >= 1
  std::vector<double> expert_loads;  ///< Recorded, one for each expert: replaces both imbalances. Empty: none
  double power_law = 0;              ///< Exponent of a power law of loads, likewise; 0: none

  MathType math = MathType::bf16;         ///< Attention projections, dense MLPs, shared experts
  MathType expert_math = MathType::bf16;  ///< Routed experts
  std::string
      dispatch_payload;  ///< As row_bytes(); empty: fp8_block128 where experts multiply in fp8, else bfloat16
  std::string combine_payload = "bfloat16";
  ExchangePath path = ExchangePath::automatic;
  ExchangeKernels kernels = ExchangeKernels::automatic;
  std::int64_t exchange_sms =
      0;  ///< That normal dispatch and combine take; 0: 24, and what overlaps with them loses these

  /// Two microbatches in turn: one's exchange behind the other's computation. Serving cuts the batch in halves of equal
  /// tokens: decode needs two sequences on a stage; in prefill the cut may lie inside a prompt, as with chunked prefill.
  bool two_batches = false;
  double overlap_tensor = 0;    ///< Share of tensor-parallel collectives that is hidden, [0, 1]
  double overlap_pipeline = 0;  ///< Share of transfers between stages that is hidden
  /// Share of the gradient sync that may hide behind the last backward pass, and of ZeRO 3's weight gathers that may hide
  /// behind what computation is left.
  double overlap_gradients = 0;
  Efficiency efficiency;
};

/// One kind of work of the busiest stage's GPU in one step.
struct TimePart {
  std::string name;       ///< For example "attention_gemm", "dispatch", "tensor_parallel", "bubble"
  std::string tier;       ///< compute, or the slowest tier that it crosses
  double us = 0;          ///< All of it
  double exposed_us = 0;  ///< What the step is longer for it
  double flops = 0;
  double bytes = 0;  ///< Read and written in HBM, or sent over its tier
};

/// One microbatch on one stage.
struct StageTime {
  double forward_us = 0;          ///< With exposed communication inside the stage
  double backward_us = 0;         ///< With recomputation; 0 in serving
  double weight_gradient_us = 0;  ///< Of backward_us, what zero-bubble schedules may move
  double send_us = 0;             ///< One microbatch to the next stage
};

struct StepTime {
  StepTimeOptions options;  ///< With defaults filled in, layout resolved
  double imbalance = 1;     ///< Used
  ExchangePath path = ExchangePath::flat;
  std::string exchange_source;                       ///< Which kernels priced dispatch and combine
  ExchangeKernels kernels = ExchangeKernels::tiers;  ///< The same, resolved; tiers where nothing is exchanged
  std::vector<TimePart> parts;                       ///< exposed_us sum to step_us
  std::vector<StageTime> stages;
  double step_us = 0;  ///< Training: one optimizer step. Prefill: one pass. Decode: one pass (all stages)
  double bubble_us = 0;
  double exposed_communication_us = 0;
  double hidden_communication_us = 0;
  double tokens_per_s = 0;  ///< All GPUs of the layout: trained, prefilled (without cached), or generated
  double tokens_per_s_per_gpu = 0;
  /// Training and prefill: needed flops (no recomputation) over the peak of `peak_type`.
  double model_flops_utilization = 0;
  MathType peak_type =
      MathType::bf16;  ///< Whichever of `math` and, with experts, `expert_math` has the higher rate
  double ttft_ms = 0;  ///< Prefill: of a prompt that starts at once, all stages
  double tpot_ms = 0;  ///< Decode: between tokens of one sequence, with accepted drafts
  double tokens_per_s_per_user = 0;  ///< Decode: 1000 / tpot_ms
  std::vector<std::string> notes;

  /// Sum of exposed_us of parts with this name; 0 where there is none.
  [[nodiscard]] double exposed_us(const std::string& name) const noexcept;
};

/// Predicts one step from rooflines, tiers, and, where `fits` is not null, fitted dispatch and combine.
/// Parts: attention_gemm, attention, mlp_gemm (dense), expert_gemm, shared_expert_gemm, router, output_head, elementwise,
///        recompute, dispatch, combine, tensor_parallel, context_parallel, pipeline_transfer, bubble, gradient_sync,
///        weight_gather (ZeRO 3), optimizer.
/// Errors: Errc::invalid_argument for layouts that do not fit the model (resolve()) or the machine, numbers out of
///         range, loads of another count than the experts, kernels that cannot serve the group (with the reason).
/// Source: docs/cost_model.md, "Step time", has every formula with its source.
[[nodiscard]] StepTime step_time(const ModelSpec& model, const Machine& machine,
                                 const StepTimeOptions& options, const CostModel* fits = nullptr);

/// Formats that a checkpoint was published in, and products in the widest type that GPU and weights share.
void use_published_formats(const ModelSpec& model, const Machine& machine, StepTimeOptions& options);

[[nodiscard]] Report report_step_time(const ModelSpec& model, const Machine& machine, const StepTime& time);

}  // namespace shunt::plan

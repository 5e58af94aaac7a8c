#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/core/view.h>
#include <shunt/routing/routing.h>

namespace shunt {

/// What a gate compares: made from a logit z of [T, E] and the temperature τ.
enum class Score : std::uint8_t {
  logit,          ///< z / τ
  softmax,        ///< softmax over all experts of z / τ
  sigmoid,        ///< 1 / (1 + exp(-z / τ))
  sqrt_softplus,  ///< sqrt(ln(1 + exp(z / τ)))
};

/// Who chooses whom.
enum class Selection : std::uint8_t {
  top_k,          ///< A token takes the K experts with the largest score + bias
  expert_choice,  ///< An expert takes its n tokens with the largest score (Zhou et al. 2022)
  sinkhorn,       ///< Top-k of the balanced matrix of exp(z / τ) while training, of z otherwise (S-BASE)
  hash,           ///< K distinct experts from a hash of the token's id
  compat_hash,    ///< moe-routing-bench: from the position in the batch; ids may repeat
  compat_expert_choice,  ///< moe-routing-bench: at most 64 tokens per expert, then top-k among those experts
};

/// How the weight of a chosen expert follows from the scores s of the chosen.
enum class WeightRule : std::uint8_t {
  softmax_chosen,  ///< Softmax over the K chosen logits (after top-k)
  score,           ///< s
  sum,             ///< s / (sum of the chosen + 1e-20)
  p_norm,          ///< s / (sum of s^p)^(1/p)
  relu_sum,        ///< max(z, 0) / (sum of them + 1e-9), without temperature; moe-routing-bench's "sum"
  mean,            ///< 1 / K
  one,             ///< 1: the outputs of the chosen experts are added up
};

/// A gate: which experts, with which weights. make_gate fills one by name; every field may then be changed.
struct GateConfig {
  std::string name = "softk";  ///< For messages
  Selection selection = Selection::top_k;
  Score score = Score::logit;
  WeightRule weights = WeightRule::softmax_chosen;
  std::int32_t num_experts = 1;  ///< E
  std::int32_t top_k = 1;        ///< K; of expert choice: experts a token gets on average
  double temperature = 1.0;      ///< τ, a normal number of float32 > 0
  double scale = 1.0;            ///< Factor on the weights, > 0 (DeepSeek's routed scaling factor)
  double norm_power = 1.0;       ///< p of p_norm, >= 1

  /// Group- or node-limited choice (selection top_k): experts form `groups` equal consecutive groups (those of a
  /// node, say), a token keeps `top_groups` of them by the sum of each one's `group_best` largest scores + bias.
  std::int32_t groups = 1;
  std::int32_t top_groups = 1;
  /// 0: max(1, K / top_groups), as Megatron; DeepSeek-V3 takes 2, V2 takes 1. All of a group that has fewer.
  std::int32_t group_best = 0;

  /// Weights mean and one have no gradient. With this, backward gives them that of softmax_chosen, so that the
  /// router learns.
  bool straight_through = false;

  double capacity_factor = 1.0;    ///< Expert choice: n = min(T, ceil(factor * T * K / E))
  bool training = true;            ///< Sinkhorn balances only while training
  double tolerance = 1e-4;         ///< Sinkhorn ends where the column factors change by less on average
  std::int32_t max_rounds = 1000;  ///< Sinkhorn ends after so many rounds at the latest
  std::uint64_t seed = 17;         ///< Hash
};

/// Names that make_gate knows, in the order of docs/routing.md.
[[nodiscard]] const std::vector<std::string>& gate_names();

/// The gate called `name`; '_' counts as '-'. docs/routing.md "Gates" says what each is.
/// Errors: Errc::invalid_argument on an unknown name, with the nearest one, and as check_gate.
[[nodiscard]] GateConfig make_gate(std::string_view name, std::int32_t num_experts, std::int32_t top_k);

/// Errors: Errc::invalid_argument with field, value and what is allowed.
void check_gate(const GateConfig& gate);

/// What a gate looks at.
template <class Real>
struct GateInput {
  View2<const Real> logits;  ///< [T, E]; finite. Unused by the hashes except for T
  /// [E] or empty: added to the scores where experts are selected, not where they are weighted (top_k only).
  std::span<const Real> bias = {};
  std::span<const std::int64_t> token_ids = {};  ///< [T], hash only: what the token is, as its vocabulary id
};

/// Chosen experts and their weights, most wanted first.
/// A row of expert choice is as wide as the most chosen token needs and ends in -1 with weight 0.
template <class Real>
struct GateOutput {
  std::int64_t num_tokens = 0;    ///< T
  std::int32_t num_experts = 0;   ///< E
  std::int32_t top_k = 0;         ///< Width of a row
  std::vector<std::int32_t> ids;  ///< [T, top_k]; -1: none
  std::vector<Real> weights;      ///< [T, top_k]
};

/// Routes tokens.
/// Result:  sums inside a token are made in Real (float: float32), each in a fixed order; larger scores come first and
///          equal ones by index. Nothing depends on threads: the same input gives the same bits.
/// Threads: pure; calls may run side by side, and tokens may be cut into calls where the selection is top_k or hash
///          (compat_hash counts positions from the first token of the call).
/// Errors:  Errc::invalid_argument: as check_gate; shapes; a logit or bias that is not finite, with token and expert.
template <class Real>
[[nodiscard]] GateOutput<Real> gate_forward(const GateConfig& gate, const GateInput<Real>& input);

/// Adds to `grad_logits` [T, E] the gradient of a loss by the logits, given the one by the weights, `grad_weights`
/// [T, top_k]. What is selected counts as constant, as everywhere in the field. `output` is what gate_forward returned
/// for `input`.
/// Errors: Errc::invalid_argument on shapes that disagree.
template <class Real>
void gate_backward(const GateConfig& gate, const GateInput<Real>& input, const GateOutput<Real>& output,
                   std::span<const Real> grad_weights, View2<Real> grad_logits);

/// The same as a Routing, for AllToAll, statistics and traces. Repeated ids of compat-hash stay.
[[nodiscard]] Routing to_routing(const GateOutput<float>& output);

/// Multiplies each element of `x` [T, H] by a number uniform in [1 - epsilon, 1 + epsilon) that depends on (seed,
/// first_token + row, column) only. The same call on a gradient is its backward.
/// Errors: Errc::invalid_argument unless 0 <= epsilon < 1.
template <class Real>
void apply_jitter(View2<Real> x, double epsilon, std::uint64_t seed, std::int64_t first_token = 0);

/// Adds deviation * N(0, 1) to each logit; depends on (seed, first_token + row, column) only. Tutel's gate_noise g is
/// a deviation of g / E. Backward is the identity.
/// Errors: Errc::invalid_argument unless deviation is finite and >= 0.
template <class Real>
void add_logit_noise(View2<Real> logits, double deviation, std::uint64_t seed, std::int64_t first_token = 0);

/// The balanced matrix of Sinkhorn: rows sum to 1/T, columns to 1/E.
template <class Real>
struct SinkhornResult {
  std::vector<Real> plan;   ///< [T, E]
  std::int32_t rounds = 0;  ///< Done
};
/// Result: of exp(logits), as Megatron's iteration d0 = (1/T) / (c d1 + 1e-8), d1 = (1/E) / (c' d0 + 1e-8); rows are
///         divided by their largest element first, so that no logit is too large.
/// Errors: Errc::invalid_argument on a logit that is not finite, tolerance <= 0 or max_rounds < 1.
template <class Real>
[[nodiscard]] SinkhornResult<Real> sinkhorn(View2<const Real> logits, double tolerance = 1e-4,
                                            std::int32_t max_rounds = 1000);

/// Selections per expert, [E]; -1 counts nowhere.
template <class Real>
[[nodiscard]] std::vector<std::int64_t> expert_counts(const GateOutput<Real>& output);

/// Balance without a loss (arXiv 2408.15664): bias_e += rate * sign(mean(counts) - counts_e). `counts` [E] are those of
/// the global batch.
/// Errors: Errc::invalid_argument on sizes, rate not finite or < 0.
template <class Real>
void update_bias(std::span<Real> bias, std::span<const std::int64_t> counts, double rate = 1e-3);

/// `steps` updates of the bias of a gate on the same logits: by quantiles where the gate selects by logit, else
/// update_bias with the counts that the bias before made.
/// Errors: Errc::invalid_argument on a gate that takes no bias (selection other than top_k), as gate_forward,
///         update_bias and update_quantile_bias.
template <class Real>
void balance_bias(const GateConfig& gate, View2<const Real> logits, std::int64_t steps, std::span<Real> bias,
                  double rate = 1e-3);

/// Quantile balancing: moves the bias (-β) of a gate that selects by logit / τ + bias towards the one with which every
/// expert gets T K / E of these tokens. With α_t the (K+1)-th largest of logits_t / τ + bias, β_e becomes the
/// (floor(T K / E) + 1)-th largest over t of logits_te / τ - α_t; the new bias is decay * bias - (1 - decay) * β.
/// `temperature` is τ, the gate's.
/// Errors: Errc::invalid_argument on sizes, K >= E, a logit that is not finite, decay outside [0, 1), τ not finite or
///         <= 0.
template <class Real>
void update_quantile_bias(View2<const Real> logits, std::int32_t top_k, std::span<Real> bias,
                          double decay = 0.0, double temperature = 1.0);

}  // namespace shunt

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <shunt/core/view.h>
#include <shunt/layer/expert_ffn.h>
#include <shunt/routing/capacity.h>
#include <shunt/routing/gate.h>
#include <shunt/routing/gate_network.h>
#include <shunt/routing/losses.h>

namespace shunt {

class Transport;

/// A mixture-of-experts layer; T tokens of H elements on each rank, E experts over all ranks.
struct MoeLayerConfig {
  std::int64_t hidden = 1;           ///< H
  std::int64_t ffn = 1;              ///< F, inner elements of an expert
  GateConfig gate;                   ///< With E and K; see make_gate
  GateArch arch = GateArch::linear;  ///< What makes the gate's logits, in float32
  std::int64_t gate_inner = 0;       ///< Its inner width; 0: as the architecture has it
  double jitter = 0;                 ///< Of the gate's inputs, in [0, 1)
  double logit_noise = 0;            ///< Deviation added to logits
  Activation activation = Activation::gelu;
  bool bias = false;  ///< Of experts, shared ones included
  std::int32_t shared_experts =
      0;                     ///< S, experts that every token gets with weight 1: one of S F inner elements
  DType dtype = DType::f32;  ///< Of tokens, rows and results: f32 or bf16. Sums are float32

  /// Capacity counts the tokens of one rank. With pad experts' rows lie `capacity` apart on one rank; between ranks
  /// padding is not sent, and products leave it out everywhere.
  CapacityMode capacity_mode = CapacityMode::dropless;
  CapacityRule capacity;  ///< drop, pad
  DropOrder drop_order = DropOrder::token_major;
  Renormalise renormalise = Renormalise::no;

  BalanceForm balance_form = BalanceForm::switch_transformer;
  double balance = 0;  ///< Coefficient of the balance loss of this rank's tokens; 0: none
  double z_loss = 0;   ///< Coefficient; 0: none

  int threads = 1;  ///< Cores that a rank computes on
  MatmulBackend backend = MatmulBackend::automatic;
  std::uint64_t seed = 17;  ///< Of all weights; experts' depend on their number among all, not on ranks

  // With a transport:
  std::int64_t max_tokens = 0;      ///< Most tokens a rank brings
  std::int64_t max_recv_rows = -1;  ///< As in AllToAllConfig
  std::chrono::milliseconds deadline{30'000};
};

/// Gradients by all parameters of one rank, laid out as the parameters.
struct MoeGradients {
  std::vector<float> router;   ///< Of this rank's tokens: to be added up over ranks
  std::vector<float> experts;  ///< Of this rank's experts, from the tokens of all ranks
  std::vector<float> shared;   ///< Of this rank's tokens
};

/// What a token brings besides its elements; both may stay empty.
struct MoeInput {
  Rows tokens;                                   ///< [T, H] of dtype, untouched until backward has returned
  std::span<const std::int64_t> token_ids = {};  ///< [T], for hash gates
  std::uint64_t noise_seed = 0;                  ///< Of jitter and noise in this step
};

/// What happened in the last step.
struct MoeStep {
  double aux_loss = 0;           ///< Balance and z-loss, weighted, of this rank's tokens
  std::int64_t num_rows = 0;     ///< Rows that this rank's experts computed
  std::int64_t num_dropped = 0;  ///< Selections of this rank's tokens without room
  double drop_rate = 0;
  // Milliseconds:
  double route_ms = 0, dispatch_ms = 0, ffn_ms = 0, combine_ms = 0;
  double back_dispatch_ms = 0, back_ffn_ms = 0, back_route_ms = 0, back_combine_ms = 0;
};

/// out[t] = shared(x[t]) + sum over k of weight[t, k] * expert[id[t, k]](x[t]), forward and backward, on one rank or over
/// the ranks of a transport.
/// Result:    sums of a token: from the shared experts' result (0 without), fma in k order in float32, rounded once. Rows of
///            an expert stand in (source rank, token) order, so that its results and its weights' gradients depend neither
///            on how many ranks hold the tokens nor on threads. The same holds for all else of a token with the backend
///            own; with others for the shared experts only as far as a product's row does not depend on how many rows it
///            has. Gradients of router and shared experts are sums of a rank's tokens, in a fixed order.
/// Ownership: borrows `transport`, which must outlive this.
/// Threads:   starts config.threads - 1 threads; calls on one object must not overlap.
/// Errors:    shunt::Error. invalid_argument: what is wrong and what is allowed; a logit that is not a number, with token
///            and expert (a rank that throws before it sends leaves the others to their deadline). Those of AllToAll.
class MoeLayer {
 public:
  /// Collective with a transport: all ranks pass the same config. Null: this process alone.
  /// Errors: top-k beyond the experts, sizes, capacity factors that mean nothing; gates that may choose an expert twice
  ///         (compat-hash) with a transport.
  explicit MoeLayer(const MoeLayerConfig& config, Transport* transport = nullptr);
  ~MoeLayer();
  MoeLayer(const MoeLayer&) = delete;
  MoeLayer& operator=(const MoeLayer&) = delete;

  [[nodiscard]] const MoeLayerConfig& config() const noexcept;
  [[nodiscard]] GateNetwork<float>& router() noexcept;
  [[nodiscard]] ExpertFfn& experts() noexcept;  ///< Of this rank
  [[nodiscard]] ExpertFfn* shared() noexcept;   ///< Null without
  /// [E] or empty: added where experts are chosen, see GateInput::bias and update_bias. Not trained.
  [[nodiscard]] std::vector<float>& gate_bias() noexcept;

  /// Writes out [T, H] of dtype. Collective; T is free per rank and may be 0.
  void forward(const MoeInput& input, const MutableRows& out);
  /// Writes grad_x [T, H] of dtype and (or, with accumulate, adds to) the gradients of all parameters, of a loss whose
  /// gradient by out is `grad_out` [T, H] of dtype, plus the auxiliary losses. Collective; once after each forward.
  /// Errors: also invalid_state where no forward went before.
  void backward(const Rows& grad_out, const MutableRows& grad_x, MoeGradients& gradients,
                bool accumulate = false);

  [[nodiscard]] const MoeStep& step() const noexcept;
  /// Of the last forward: [T, E] logits, the gate's choice before and after dropping, and what was dropped.
  [[nodiscard]] std::span<const float> logits() const noexcept;
  [[nodiscard]] const GateOutput<float>& chosen() const noexcept;
  [[nodiscard]] const GateOutput<float>& kept() const noexcept;
  [[nodiscard]] const CapacityPlan& plan() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shunt

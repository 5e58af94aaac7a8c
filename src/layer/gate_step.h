#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <shunt/layer/moe_layer.h>

namespace shunt::detail {

class Workers;

/// From tokens to kept choices and back: network, gate, capacity, losses.
class GateStep {
 public:
  GateStep(const MoeLayerConfig& config, Workers& workers);

  /// Result: the auxiliary losses.
  double forward(const MoeInput& input, std::span<const float> bias);
  /// Writes the gradient by the tokens to grad_x [T, H]; writes or adds to grad_router. `grad_weights` [T, K] is by the
  /// weights kept.
  void backward(const MoeInput& input, std::span<const float> bias, std::span<const float> grad_weights,
                float* grad_x, std::span<float> grad_router);

  GateNetwork<float> network;
  std::vector<float> logits;  ///< [T, E]
  GateOutput<float> chosen, kept;
  CapacityPlan plan;

 private:
  [[nodiscard]] GateInput<float> gate_input(const MoeInput& input, std::span<const float> bias) const;
  [[nodiscard]] View2<float> view(std::vector<float>& of, std::int64_t cols) const;
  [[nodiscard]] BalanceLoss balance_of() const;
  void make_logits();

  const MoeLayerConfig& config_;
  Workers& workers_;
  std::int64_t tokens_ = 0;
  std::vector<float> x_;                           ///< [T, H] what the network reads
  std::vector<float> grad_logits_;                 ///< [T, E]
  std::vector<GateNetwork<float>::Trace> traces_;  ///< Of each block of tokens
};

}  // namespace shunt::detail

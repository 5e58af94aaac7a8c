#include <cmath>

#include <shunt/routing/gate.h>

#include "scores.h"

namespace shunt {
namespace {

using detail::at;
using detail::refuse;

/// Gradient through a softmax over the chosen logits of one token.
template <class Real>
void add_chosen_softmax(Real temperature, const std::int32_t* ids, const Real* grads, const Real* weights,
                        std::int64_t k, Real* grad_z) {
  Real dot = 0;
  for (std::int64_t i = 0; i < k; ++i) dot += weights[i] * grads[i];
  for (std::int64_t i = 0; i < k; ++i) grad_z[ids[i]] += weights[i] * (grads[i] - dot) / temperature;
}

/// Gradient by the scores of the chosen, for the rules that look at scores.
template <class Real>
void score_gradient(const GateConfig& gate, const Real* scores, const std::int32_t* ids, const Real* grads,
                    std::int64_t k, Real* grad_scores) {
  if (gate.weights == WeightRule::score) {
    for (std::int64_t i = 0; i < k; ++i) grad_scores[ids[i]] += grads[i];
    return;
  }
  if (gate.weights == WeightRule::sum) {
    Real sum = Real(1e-20);
    for (std::int64_t i = 0; i < k; ++i) sum += scores[ids[i]];
    Real dot = 0;
    for (std::int64_t i = 0; i < k; ++i) dot += grads[i] * (scores[ids[i]] / sum);
    for (std::int64_t i = 0; i < k; ++i) grad_scores[ids[i]] += (grads[i] - dot) / sum;
    return;
  }
  const Real p = static_cast<Real>(gate.norm_power);
  const Real norm = detail::p_norm(scores, ids, k, p);
  if (!(norm > 0)) return;
  Real dot = 0;
  for (std::int64_t i = 0; i < k; ++i) dot += grads[i] * (scores[ids[i]] / norm);
  for (std::int64_t i = 0; i < k; ++i)
    grad_scores[ids[i]] += (grads[i] - dot * std::pow(scores[ids[i]] / norm, p - 1)) / norm;
}

template <class Real>
class TokenBackward {
 public:
  explicit TokenBackward(const GateConfig& gate)
      : gate_(gate),
        temperature_(static_cast<Real>(gate.temperature)),
        scores_(at(gate.num_experts)),
        grad_scores_(at(gate.num_experts)) {}

  /// `weights` without the gate's scale.
  void operator()(const Real* z, const std::int32_t* ids, const Real* weights, const Real* grads,
                  std::int64_t k, Real* grad_z) {
    switch (gate_.weights) {
      case WeightRule::softmax_chosen:
        add_chosen_softmax(temperature_, ids, grads, weights, k, grad_z);
        return;
      case WeightRule::mean:
      case WeightRule::one:
        if (gate_.straight_through) straight_through(z, ids, grads, k, grad_z);
        return;
      case WeightRule::relu_sum: {
        Real sum = Real(1e-9);
        for (std::int64_t i = 0; i < k; ++i) sum += std::max(z[ids[i]], Real(0));
        Real dot = 0;
        for (std::int64_t i = 0; i < k; ++i) dot += weights[i] * grads[i];
        for (std::int64_t i = 0; i < k; ++i) {
          if (z[ids[i]] > 0) grad_z[ids[i]] += (grads[i] - dot) / sum;
        }
        return;
      }
      case WeightRule::score:
      case WeightRule::sum:
      case WeightRule::p_norm:
        break;
    }
    const std::int64_t experts = gate_.num_experts;
    detail::make_scores(gate_.score, temperature_, z, experts, scores_.data());
    std::fill(grad_scores_.begin(), grad_scores_.end(), Real(0));
    score_gradient(gate_, scores_.data(), ids, grads, k, grad_scores_.data());
    detail::add_score_gradient(gate_.score, temperature_, z, scores_.data(), grad_scores_.data(), experts,
                               grad_z);
  }

 private:
  void straight_through(const Real* z, const std::int32_t* ids, const Real* grads, std::int64_t k,
                        Real* grad_z) {
    Real largest = z[ids[0]];
    for (std::int64_t i = 1; i < k; ++i) largest = std::max(largest, z[ids[i]]);
    Real sum = 0;
    for (std::int64_t i = 0; i < k; ++i)
      sum += scores_[at(i)] = std::exp((z[ids[i]] - largest) / temperature_);
    for (std::int64_t i = 0; i < k; ++i) scores_[at(i)] /= sum;
    add_chosen_softmax(temperature_, ids, grads, scores_.data(), k, grad_z);
  }

  const GateConfig& gate_;
  Real temperature_;
  std::vector<Real> scores_, grad_scores_;
};

}  // namespace

template <class Real>
void gate_backward(const GateConfig& gate, const GateInput<Real>& input, const GateOutput<Real>& output,
                   std::span<const Real> grad_weights, View2<Real> grad_logits) {
  check_gate(gate);
  const View2<const Real>& logits = input.logits;
  if (logits.cols != gate.num_experts || output.num_experts != gate.num_experts ||
      output.num_tokens != logits.rows)
    refuse(
        "gate {}: the output is of {} tokens and {} experts, the logits are [{}, {}]; both must be of the "
        "gate's {} experts and of the same tokens",
        gate.name, output.num_tokens, output.num_experts, logits.rows, logits.cols, gate.num_experts);
  if (grad_weights.size() != output.ids.size() || output.weights.size() != output.ids.size() ||
      output.ids.size() != at(output.num_tokens * output.top_k))
    refuse("gate {}: gradients of {} weights for {} selections and {} weights; {} of each are needed",
           gate.name, grad_weights.size(), output.ids.size(), output.weights.size(),
           output.num_tokens * output.top_k);
  if (grad_logits.data == nullptr && logits.rows > 0)
    refuse("gate {}: no memory for the gradient of the logits", gate.name);
  detail::check_grad(logits, grad_logits, "gate " + gate.name);

  const std::int64_t k = output.top_k;
  const Real scale = static_cast<Real>(gate.scale);
  std::vector<std::int32_t> ids(at(k));
  std::vector<Real> grads(at(k)), weights(at(k));
  TokenBackward<Real> backward(gate);
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    std::int64_t live = 0;
    for (std::int64_t i = t * k; i < (t + 1) * k; ++i) {
      if (output.ids[at(i)] < 0) continue;
      ids[at(live)] = output.ids[at(i)];
      grads[at(live)] = grad_weights[at(i)] * scale;
      weights[at(live++)] = output.weights[at(i)] / scale;
    }
    if (live > 0) backward(logits.row(t), ids.data(), weights.data(), grads.data(), live, grad_logits.row(t));
  }
}

template void gate_backward(const GateConfig&, const GateInput<float>&, const GateOutput<float>&,
                            std::span<const float>, View2<float>);
template void gate_backward(const GateConfig&, const GateInput<double>&, const GateOutput<double>&,
                            std::span<const double>, View2<double>);

}  // namespace shunt

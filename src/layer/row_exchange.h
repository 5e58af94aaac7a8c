#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <shunt/layer/moe_layer.h>

namespace shunt::detail {

class Workers;

/// Tokens to the rows of their experts, and rows to sums of tokens. Two ways: within one process, and by AllToAll. Calls
/// of a step: dispatch, combine; then, for the gradients, redispatch, weight_gradients, combine.
class RowExchange {
 public:
  virtual ~RowExchange() = default;

  /// Copies tokens [T, H] to rows(), as `kept` and `plan` say; both must live until the step ends.
  virtual void dispatch(const Rows& tokens, const GateOutput<float>& kept, const CapacityPlan& plan) = 0;
  /// out[t] = start[t] + sum over k of weights[t, k] * row(t, k) of results(); weights null: 1. `start` [T, H] may be null
  /// and is used up.
  virtual void combine(const float* weights, float* start, const MutableRows& out) = 0;
  /// As dispatch with the same choices, of gradients, to gradient_rows(); fills row_weights().
  virtual void redispatch(const Rows& gradients) = 0;
  /// To each choice [T, K] the value of its row: 0 where it has none.
  virtual void weight_gradients(const float* of_rows, std::span<float> grad_weights) = 0;

  [[nodiscard]] virtual ExpertRows layout() const = 0;
  [[nodiscard]] virtual Rows rows() const = 0;  ///< Kept from dispatch until the next one
  [[nodiscard]] virtual Rows gradient_rows() const = 0;
  [[nodiscard]] virtual MutableRows results() = 0;             ///< To be filled before combine
  [[nodiscard]] virtual const float* row_weights() const = 0;  ///< [total], 0 in padding
};

/// Within one process.
[[nodiscard]] std::unique_ptr<RowExchange> make_local_exchange(const MoeLayerConfig& config,
                                                               Workers& workers);
/// Between the ranks of `transport`. Collective.
[[nodiscard]] std::unique_ptr<RowExchange> make_rank_exchange(const MoeLayerConfig& config, Workers& workers,
                                                              Transport& transport);

}  // namespace shunt::detail

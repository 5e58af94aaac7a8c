#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <shunt/routing/gate.h>

namespace shunt {

/// How many tokens an expert takes, by the formulas of the field; T tokens, K experts each, E experts, factor cf.
enum class CapacityFormula : std::uint8_t {
  ceil,          ///< max(1, ceil(cf (T K / E))): moe-routing-bench's layer
  megatron,      ///< ceil((T K / E) cf): Megatron-Core
  megablocks,    ///< floor(cf (K T W / E)), W ranks; 0, or a result of 0, means the largest load: MegaBlocks
  tutel,         ///< K floor(cf ceil(T / E)); 0: the largest load; negative: the smaller of both: Tutel
  compat_sweep,  ///< max(1, floor(cf T K / E + 0.9999)): moe-routing-bench's sweeps
  compat_bench,  ///< ceil of the float32 product cf (T K / E): moe-routing-bench's bench_capacity
};

struct CapacityRule {
  CapacityFormula formula = CapacityFormula::ceil;
  double factor = 1.0;            ///< cf; > 0, and what the formula says of 0 and below
  std::int64_t min_capacity = 0;  ///< Less becomes this
  std::int64_t alignment = 1;     ///< Rounded up to a multiple
  std::int32_t ranks = 1;         ///< W, megablocks
};

/// Result: in double, multiplied and divided in the order given above, so that the originals' roundings come out.
/// Errors: Errc::invalid_argument with the value and what is allowed: factor (NaN, infinite, <= 0 where that means
///         nothing), sizes, a `max_load` that is needed and not given (-1), a capacity of 0 or beyond 2^31 - 1.
[[nodiscard]] std::int64_t expert_capacity(const CapacityRule& rule, std::int64_t num_tokens,
                                           std::int32_t top_k, std::int32_t num_experts,
                                           std::int64_t max_load = -1);

/// Errors: Errc::invalid_argument on an unknown name, with the nearest one.
[[nodiscard]] CapacityFormula parse_capacity_formula(std::string_view name);
[[nodiscard]] const char* capacity_formula_name(CapacityFormula formula) noexcept;

/// Who stays where more tokens want an expert than it takes.
enum class DropOrder : std::uint8_t {
  token_major,        ///< First tokens, all their choices in turn (moe-routing-bench, MegaBlocks, "position")
  k_major,            ///< All first choices in token order, then all second ones (GShard, Tutel)
  batch_prioritised,  ///< As k_major, tokens sorted by falling priority (BPR)
  probability,        ///< Each expert keeps its largest weights (Megatron "probs")
};
/// Errors: Errc::invalid_argument on an unknown name, with the nearest one.
[[nodiscard]] DropOrder parse_drop_order(std::string_view name);

/// What a full expert means.
enum class CapacityMode : std::uint8_t {
  drop,      ///< The rest is dropped; rows lie one behind the other
  pad,       ///< The rest is dropped; every expert has exactly `capacity` rows
  dropless,  ///< Nobody is dropped; `capacity` is not looked at
};

struct CapacityOptions {
  CapacityMode mode = CapacityMode::drop;
  DropOrder order = DropOrder::token_major;
  std::int64_t capacity = 0;   ///< C >= 1, except dropless
  std::int64_t alignment = 1;  ///< Rows of an expert begin at multiples (drop, dropless)
};

/// Where each selection goes. Which ones stay depends on the order; inside an expert the kept ones always stand in
/// token order, so that the order of rows does not tell how they were chosen.
struct CapacityPlan {
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 0;
  std::vector<std::int32_t> places;   ///< [T, top_k], place inside the expert; -1: dropped, or no selection
  std::vector<std::int64_t> counts;   ///< [E], selections
  std::vector<std::int64_t> kept;     ///< [E]
  std::vector<std::int64_t> starts;   ///< [E + 1], first row of each expert; the last is the number of rows
  std::int64_t num_selections = 0;    ///< Those that are not -1
  std::int64_t num_dropped = 0;       ///< Of them
  std::int64_t tokens_without = 0;    ///< Tokens that had selections and kept none
  std::int64_t largest_capacity = 0;  ///< C; dropless: the largest load
  /// num_dropped / num_selections; 0 where there are none.
  [[nodiscard]] double drop_rate() const noexcept;
  /// tokens_without / T.
  [[nodiscard]] double token_drop_rate() const noexcept;
  /// Largest kept / C.
  [[nodiscard]] double used_capacity() const noexcept;
};

/// Keeps selections while experts have room.
/// `priorities` [T], batch_prioritised only: of tokens, the largest first; empty: the largest weight of each. Tutel
/// takes the largest softmax probability, see largest_probability.
/// Errors: Errc::invalid_argument: capacity < 1 or alignment < 1; sizes; ids outside [-1, E); a weight or priority that
///         is not a number.
template <class Real>
[[nodiscard]] CapacityPlan plan_capacity(const GateOutput<Real>& gate, const CapacityOptions& options,
                                         std::span<const Real> priorities = {});

/// Largest softmax probability of each token, [T].
template <class Real>
[[nodiscard]] std::vector<Real> largest_probability(View2<const Real> logits);

/// What becomes of the weights of a token that lost experts.
enum class Renormalise : std::uint8_t {
  no,        ///< They stay
  to_one,    ///< Divided by their sum (moe-routing-bench)
  keep_sum,  ///< Scaled to the sum before dropping: for gates whose weights do not sum to 1
};

/// `gate` without what was dropped: id -1, weight 0. A token that keeps nothing, or weights of sum 0, stays at 0.
template <class Real>
[[nodiscard]] GateOutput<Real> apply_drops(const GateOutput<Real>& gate, const CapacityPlan& plan,
                                           Renormalise renormalise);

/// Gradient by the weights before dropping, [T, top_k], from the one after. Dropped selections get 0, except through the
/// sum of keep_sum.
template <class Real>
[[nodiscard]] std::vector<Real> apply_drops_backward(const GateOutput<Real>& gate, const CapacityPlan& plan,
                                                     Renormalise renormalise,
                                                     std::span<const Real> grad_weights);

}  // namespace shunt

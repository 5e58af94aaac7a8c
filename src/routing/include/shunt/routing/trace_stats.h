#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <shunt/core/record.h>
#include <shunt/routing/gate.h>
#include <shunt/routing/load.h>
#include <shunt/routing/trace.h>

namespace shunt {

/// A trace of what Router draws. Step s of group g holds tokens [n s / steps, n (s + 1) / steps) of the n that
/// Router(spec, {shape.num_tokens * steps, ...}, seed).route(g) has, so that the routing `trace:FILE` repeats `spec`.
/// Errors: Errc::invalid_argument on steps < 1 or as Router; Errc::io as Router.
[[nodiscard]] Trace make_trace(const RoutingSpec& spec, const RoutingShape& shape, std::uint64_t seed,
                               std::int32_t steps);

/// Where the logits of a gate trace come from.
struct TraceLogits {
  double skew = 0;           ///< Deviation of how much experts are liked
  std::string network = {};  ///< Name of parse_gate_arch, or empty: normal logits
  std::int64_t hidden = 64;  ///< Elements of the normal tokens that the network reads
  double jitter = 0;         ///< Of those, as apply_jitter
  double noise = 0;          ///< As add_logit_noise
  /// Updates (balance_bias) of one bias, which the gate keeps, on the logits of each group of each step before it chooses.
  std::int64_t balance_steps = 0;
};

/// A trace of what a gate makes of random logits: z_te = N(0, 1), or what a network with random weights makes of normal
/// tokens, + skew * u_e, where u_e ~ N(0, 1) belongs to the expert and stays, + noise; token ids of hash gates are uniform
/// below 50000. One call of the gate for each step and group. Rows of expert choice are widened to the widest.
/// Errors: Errc::invalid_argument on steps < 1, skew not finite or < 0, jitter without a network, sizes, an unknown network,
///         and ids that repeat (compat-hash can); as apply_jitter and add_logit_noise.
[[nodiscard]] Trace make_gate_trace(const GateConfig& gate, const RoutingShape& shape, std::uint64_t seed,
                                    std::int32_t steps, const TraceLogits& of);

enum class TraceDetail : std::uint8_t { whole, steps, groups };

/// What a part of a trace looks like.
struct TraceLoad {
  std::int32_t step = -1;   ///< -1: all
  std::int32_t group = -1;  ///< -1: all
  std::int64_t tokens = 0;
  std::int64_t selections = 0, skipped = 0;  ///< Choices that name an expert, and those that are -1
  std::vector<std::int64_t> counts;          ///< [E]
  LoadStatistics load{};
  GateStatistics gate{};
  std::vector<double> drop_rates, token_drop_rates;  ///< For each capacity factor
};

/// The whole first, then its parts as `detail` asks.
/// Drop rates are those of each group of a step for itself (formula ceil, token-major), as ranks drop on their own.
/// Errors: Errc::invalid_argument on a capacity factor that is not a finite number > 0.
[[nodiscard]] std::vector<TraceLoad> describe_trace(const Trace& trace, TraceDetail detail,
                                                    std::span<const double> capacity_factors = {});

[[nodiscard]] std::string format_trace_loads(const Trace& trace, const std::vector<TraceLoad>& loads,
                                             std::span<const double> capacity_factors);
/// {"record":"trace_load", ...}, docs/formats.md "Trace loads".
[[nodiscard]] std::vector<Record> trace_load_records(const Trace& trace, const std::vector<TraceLoad>& loads,
                                                     std::span<const double> capacity_factors);

}  // namespace shunt

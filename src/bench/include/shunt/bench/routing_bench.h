#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/core/dtype.h>
#include <shunt/core/record.h>
#include <shunt/core/statistics.h>
#include <shunt/pack/kernels.h>
#include <shunt/routing/capacity.h>
#include <shunt/routing/load.h>

namespace shunt::bench {

/// The parts of a routing layer that are measured on their own; T tokens, K experts each, E experts, H hidden.
enum class RoutingWork : std::uint8_t {
  topk,  ///< Logits [T, E] to expert ids and softmax weights [T, K]
  routing,  ///< Pack by expert, identity experts, combine with weights: `shunt bench routing`, `shunt sweep pack`
  capacity,  ///< The same where experts take at most C tokens: `shunt bench capacity`, `shunt sweep capacity`
  pack_only,     ///< The first half of routing
  combine_only,  ///< Its second half
};

/// One point of a benchmark and how to measure it. Defaults are moe-routing-bench's.
struct RoutingPoint {
  RoutingWork work = RoutingWork::routing;
  std::int64_t tokens = 16384;
  std::int64_t hidden = 4096;
  std::int32_t num_experts = 128;
  std::int32_t top_k = 2;
  DType dtype = DType::f16;      ///< f32, f16 or bf16: of tokens and rows; topk: of logits
  std::string gate = "softk";    ///< Name of make_gate; topk: softk only
  bool weighted = true;          ///< Combine with the gate's weights; false: add rows up
  double logit_deviation = 1.0;  ///< Of the normal logits, where there is no router
  std::string
      router;  ///< Name of parse_gate_arch: logits are what this network makes of normal tokens; empty: random
  double temperature = 1.0;  ///< Of the gate
  double jitter = 0;  ///< Before the router, a factor in [1 - jitter, 1 + jitter) of each element of a token
  double noise = 0;   ///< Deviation of normal noise on the logits
  std::int64_t balance_steps = 0;  ///< Updates of the gate's bias before it chooses (balance_bias)
  double capacity_factor = 1.0;    ///< capacity only
  CapacityFormula formula = CapacityFormula::ceil;
  Renormalise renormalise = Renormalise::no;         ///< Of the weights that dropping leaves
  std::vector<std::string> impls{"scalar", "simd"};  ///< Of impl_names()
  std::int32_t threads = 0;                          ///< Of every implementation; 0: as many as cores
  std::int64_t warmup = 10;
  std::int64_t iterations = 100;
  double max_seconds = 20;  ///< Timed iterations end early after it, but not before the third
  std::uint64_t seed = 17;
};

/// One implementation at one point.
struct RoutingRow {
  std::string
      impl;  ///< Of impl_names(), or copy: as many bytes as the strict formula says, by streaming stores
  std::string isa;      ///< Kernel table; libtorch, GPU
  std::string written;  ///< torch: how it is written in libtorch
  SampleSummary ms{};
  double pack_ms = 0, combine_ms = 0;  ///< Means of the two halves; 0: topk, copy, what is not measured
  bool correct = true;
  std::string reason;  ///< What was wrong
};

struct RoutingResult {
  RoutingPoint point;            ///< threads as they were, top_k the width of a row of ids
  std::int32_t requested_k = 0;  ///< K as asked; expert choice has wider rows, filled with -1
  std::vector<RoutingRow> rows;  ///< copy last; topk has none
  double router_ms = 0;          ///< The router, run once, without warm-up, by all threads; 0: there is none
  LoadStatistics load{};         ///< Of all selections
  LoadStatistics kept_load{};    ///< Of those that have room
  GateStatistics gate{};         ///< Of the weights before dropping
  std::int64_t capacity = 0;     ///< C; 0: no limit
  std::int64_t kept = 0;         ///< Selections that have room
  std::int64_t kept_tokens = 0;  ///< Tokens with at least one of them
  double avg_drop_rate = 0;      ///< Dropped / selections
  double token_drop_rate = 0;    ///< Tokens that lost all experts / T
  double used_capacity = 0;      ///< Largest kept load / C
  bool failed = false;           ///< Some row is wrong

  /// (2 + 2K) H bytes: a token is read and written K times, then K rows are read and one is written; of one half
  /// (1 + K) H; K as asked. 0: topk.
  [[nodiscard]] std::int64_t bytes_per_token_strict() const;
  /// T times that.
  [[nodiscard]] std::int64_t strict_bytes() const;
  /// What is moved where dropped selections move nothing: tokens that keep an expert are read, kept rows are written
  /// and read, all T sums are written.
  [[nodiscard]] std::int64_t kept_bytes() const;
  /// Mean of `impl` / mean of `row`; 0 where `impl` was not measured.
  [[nodiscard]] double speedup_over(const std::string& impl, const RoutingRow& row) const;
};

/// Errors: Errc::invalid_argument with option, value and range; as make_gate and expert_capacity.
void check_point(const RoutingPoint& point);

/// Measures one point: the implementations in turn, iteration by iteration, so that what disturbs the machine
/// disturbs all of them; then each once more, and what that wrote is compared with what the ids and weights demand.
/// Errors: as check_point; Errc::out_of_memory with the bytes; Errc::unavailable where an implementation cannot run here.
[[nodiscard]] RoutingResult measure_point(const RoutingPoint& asked);

struct RoutingBenchOptions {
  RoutingPoint point;
  std::vector<double> capacity_factors{1.0, 1.1, 1.25, 1.5};  ///< capacity only
  std::string jsonl;                                          ///< Empty: not written
};

struct RoutingBenchReport {
  std::vector<RoutingResult> results;  ///< One, or one for each capacity factor
  bool failed = false;
};

/// `shunt bench topk|routing|capacity|pack-only|combine`.
/// Errors: as measure_point; Errc::io.
[[nodiscard]] RoutingBenchReport run_routing_bench(const RoutingBenchOptions& options,
                                                   const std::vector<std::string>& command,
                                                   const BenchOutput& output);

/// topk, routing, capacity, pack-only, combine.
[[nodiscard]] std::string routing_work_name(RoutingWork work);
/// scalar: the kernels that are the specification; simd: the fastest of this CPU; torch: libtorch, from a plugin.
[[nodiscard]] const std::vector<std::string>& impl_names();

[[nodiscard]] std::string format_routing_table(const std::vector<RoutingResult>& results);
/// {"record":"result","bench":"topk|routing|capacity|pack-only|combine", ...} for each row, docs/formats.md "Routing results".
[[nodiscard]] std::vector<Record> routing_records(const RoutingResult& result);

}  // namespace shunt::bench

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/core/dtype.h>
#include <shunt/core/record.h>
#include <shunt/core/statistics.h>

namespace shunt::bench {

/// A layer to be measured. Sizes are moe-routing-bench's.
struct LayerPoint {
  std::int64_t tokens = 8192;  ///< Of each rank
  std::int64_t hidden = 1024;
  std::int64_t ffn = 0;  ///< 0: 4 * hidden
  std::int32_t num_experts = 32;
  std::int32_t top_k = 2;
  std::string gate = "softk";
  std::string activation = "gelu";  ///< gelu, silu or swiglu
  bool bias = false;
  std::int32_t shared_experts = 0;
  DType dtype = DType::f32;    ///< f32 or bf16
  double capacity_factor = 0;  ///< 0: dropless
  bool backward = true;
  std::int32_t ranks = 1;    ///< Above 1: processes of this machine, experts spread over them
  std::int32_t threads = 0;  ///< Of each rank; 0: the cores over the ranks
  std::string backend = "automatic";
  std::vector<std::string> impls{"shunt"};  ///< shunt, torch
  std::int64_t warmup = 1;
  std::int64_t iterations = 20;
  double max_seconds = 30;  ///< Timed iterations end early after it, but not before the third
  std::uint64_t seed = 17;

  [[nodiscard]] std::int64_t inner() const noexcept { return ffn > 0 ? ffn : 4 * hidden; }
};

/// One implementation.
struct LayerRow {
  std::string impl;
  std::string by;  ///< shunt: who multiplies; torch: its version and how the layer is written
  SampleSummary forward_ms{}, backward_ms{}, total_ms{};  ///< With ranks, of the slowest in each iteration
  /// Means, of shunt only. With ranks, those of the slowest in each part.
  double route_ms = 0, dispatch_ms = 0, ffn_ms = 0, combine_ms = 0;
  double back_dispatch_ms = 0, back_ffn_ms = 0, back_route_ms = 0, back_combine_ms = 0;
  bool correct = true;
  std::string reason;
};

struct LayerResult {
  LayerPoint point;  ///< Threads and ffn filled in
  std::vector<LayerRow> rows;
  std::int64_t flops = 0;  ///< Of the products of experts, shared ones and router in one iteration, all ranks
  double drop_rate = 0;
  bool failed = false;
};

/// Errors: Errc::invalid_argument with option, value and range.
void check_layer_point(const LayerPoint& point);

/// Measures the implementations in turn, iteration by iteration, in one process. Before that, what each computes is
/// compared: with double precision (results and gradients of 16 tokens, 12 elements of the gradients of weights), and with
/// each other (all of it, in norm).
/// Errors: as check_layer_point; Errc::unavailable where torch is asked for and not there; Errc::out_of_memory.
[[nodiscard]] LayerResult measure_layer(const LayerPoint& asked);

struct LayerBenchOptions {
  LayerPoint point;
  std::string jsonl;  ///< Empty: not written
};

/// `shunt bench layer`.
/// Errors: as measure_layer; Errc::io.
[[nodiscard]] LayerResult run_layer_bench(const LayerBenchOptions& options,
                                          const std::vector<std::string>& command, const BenchOutput& output);

[[nodiscard]] std::string format_layer_table(const LayerResult& result);
/// {"record":"result","bench":"layer", ...} for each row, docs/formats.md "Layer results".
[[nodiscard]] std::vector<Record> layer_records(const LayerResult& result);

}  // namespace shunt::bench

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/bench/gemm.h>
#include <shunt/core/record.h>

namespace shunt::bench {

/// What `shunt bench overlap` was asked to do. Values here are checked by run_overlap_bench.
struct OverlapBenchOptions {
  /// Ranks, shapes, tokens, transport, routing, rounds, time, as `shunt bench alltoall` has them. Its methods, files and
  /// registry are not used.
  AllToAllBenchOptions points;
  std::string device = "auto";  ///< cpu, cuda, or auto: cuda where it can run
  /// Columns n of the product [tokens, hidden] x [hidden, n] of each rank, which stands for the layer's other work; 0:
  /// as many as make one product take as long as half of dispatch + combine.
  std::int64_t gemm_columns = 0;
  std::int64_t gemm_rows = 0;   ///< m; 0: the tokens of the point
  std::int64_t gemm_depth = 0;  ///< k; 0: the hidden size of the point
  DType gemm_dtype = DType::f32;
  std::string jsonl;  ///< Empty: not written
  /// For tests: makes the products, in place of oneDNN or cuBLASLt.
  MakeGemm make_gemm{};
};

/// The four ways to spend one half of a step, in the order of the tables.
inline constexpr std::array<const char*, 4> kOverlapWays{"communication", "gemm", "serial", "overlapped"};

/// How much of the communication went on while the product was computed, in one phase (dispatch, combine, or total) and
/// placement class: (serial - overlapped) / communication, from the medians. 1: all of it, 0: none, below 0: the
/// two hinder each other.
struct Hidden {
  double share = 0;
  double low = 0, high = 0;  ///< From the ends of the 95 % intervals of serial and overlapped
  /// min(communication, gemm) / communication: more than this cannot be hidden.
  double most = 0;
};

/// Errors: Errc::unavailable where one of the four ways was not measured in that class.
[[nodiscard]] Hidden hidden_share(const PointResult& result, const std::string& placement,
                                  const std::string& phase);

struct OverlapBenchReport {
  std::vector<PointResult> points;  ///< The methods are kOverlapWays
  std::string device;               ///< cpu or cuda: where it ran
  std::string note;                 ///< Why it is not the device asked for; empty where it is
  std::string library;              ///< That computed the products
  bool leads = true;
  int status = 0;  ///< As AllToAllBenchReport
  bool failed = false;
};

/// Measures at every point how much of dispatch and combine can hide behind a matrix product of the caller: the
/// four ways interleaved in one run, every payload and every product checked.
/// Errors:  as run_alltoall_bench; Errc::unavailable with the reason where no library computes products here.
/// Threads: from a single-threaded process (ranks are forked).
[[nodiscard]] OverlapBenchReport run_overlap_bench(OverlapBenchOptions options,
                                                   const std::vector<std::string>& command,
                                                   const BenchOutput& output);

/// Table of one point for people.
[[nodiscard]] std::string format_overlap_point(const PointResult& result);
/// One record for each way, phase and class, and one for what was hidden, as docs/formats.md "Overlap results" says.
[[nodiscard]] std::vector<Record> overlap_records(const PointResult& result,
                                                  const OverlapBenchReport& report);

}  // namespace shunt::bench

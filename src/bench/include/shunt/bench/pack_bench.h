#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/core/dtype.h>
#include <shunt/core/record.h>
#include <shunt/core/statistics.h>

namespace shunt::bench {

/// What `shunt bench pack` was asked to do. Values here are checked by run_pack_bench.
struct PackBenchOptions {
  std::string device = "auto";       ///< cpu, cuda, or auto: cuda where it can run
  std::vector<std::string> presets;  ///< Empty: r1, unless a size below is given
  std::int32_t num_experts = 0;      ///< 0: from the preset
  std::int32_t top_k = 0;
  std::int64_t hidden = 0;
  std::vector<std::int64_t> tokens{128, 4096};
  DType in_dtype = DType::bf16;      ///< Of tokens: f32, f16 or bf16
  DType payload = DType::bf16;       ///< Of rows: in_dtype, or fp8 with a scale per 128 elements
  ScaleType scale = ScaleType::f32;  ///< Of fp8 rows: f32 or ue8m0
  DType out_dtype = DType::bf16;     ///< Of expert results and combined tokens
  std::vector<std::string> routings{"uniform"};
  std::int64_t warmup = 20;
  std::int64_t iterations = 100;
  bool cold = false;            ///< Other memory is written between iterations, so that caches hold nothing
  std::int32_t max_blocks = 0;  ///< cuda: blocks of a launch; 0: as many as fill the device
  std::uint64_t seed = 1;
  std::string jsonl;  ///< Empty: not written
};

/// One phase at one point.
struct PackRow {
  std::string preset;
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::int64_t hidden = 0;
  std::int64_t tokens = 0;
  std::string routing;
  std::string phase;  ///< pack (plan and gather), plan, gather, scatter, combine, or the floor copy
  SampleSummary us{};
  std::int64_t bytes = 0;  ///< Read and written
  bool correct = true;
  std::string reason;  ///< What was wrong

  [[nodiscard]] double gb_per_s() const noexcept {
    return us.median > 0 ? static_cast<double>(bytes) / us.median / 1e3 : 0;
  }
};

struct PackBenchReport {
  std::string device;  ///< cpu or cuda: where it ran
  std::string description;
  std::string note;  ///< Why it is not the device asked for; empty where it is
  std::vector<PackRow> rows;
  bool failed = false;  ///< Some result was wrong
};

/// Times the parts of packing on one device, and checks what they wrote against the scalar kernels.
/// Errors: Errc::invalid_argument with option, value and range; Errc::out_of_memory where a point does not fit; Errc::io.
[[nodiscard]] PackBenchReport run_pack_bench(const PackBenchOptions& options,
                                             const std::vector<std::string>& command,
                                             const BenchOutput& output);

[[nodiscard]] std::string format_pack_table(const PackBenchReport& report, const PackBenchOptions& options);
[[nodiscard]] std::vector<Record> pack_records(const PackBenchReport& report,
                                               const PackBenchOptions& options);

}  // namespace shunt::bench

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/core/dtype.h>
#include <shunt/pack/kernels.h>

struct CUstream_st;

/// The pack kernels on an NVIDIA GPU: which row each token's copies get, the copies (quantised on the way), and the
/// weighted sums of the results. The same bits as the CPU kernels, and the same rows on every run: no position depends on
/// the order in which threads happen to run.
/// Ownership: every pointer is device memory of the caller that the current device reaches, in use until `stream` has
///            passed the call. Nothing is allocated, nothing copied to or from the host, nothing waits for the host, so
///            every call may be captured in a CUDA graph.
/// Threads:   all functions are reentrant; they use the current device of the calling thread.
/// Errors:    Errc::unavailable with the reason where this build has no CUDA or the machine no device,
///            invalid_argument before anything is launched, internal with CUDA's own words where a launch fails.
/// Letters:   T tokens, K top-k, E experts, H hidden, N rows.
namespace shunt::cuda {

/// A cudaStream_t; null: the default stream.
using Stream = ::CUstream_st*;

/// Why the functions below cannot run here; empty where they can.
[[nodiscard]] std::string unavailable_reason();

/// A limit for every call below.
struct LaunchLimit {
  std::int32_t max_blocks =
      0;  ///< Blocks of a launch, 0: as many as fill the device. Bounds the SMs that are held.
};

/// The expert ids of a step.
struct Selections {
  const void* ids = nullptr;  ///< [T, K] dense, int32 or int64; -1 skips
  bool wide = false;          ///< ids are int64
  std::int64_t num_tokens = 0;
  std::int32_t top_k = 1;
  const std::int32_t* live_tokens =
      nullptr;  ///< Where not null: only the first *live_tokens, read by the kernels
};

/// What went wrong with a plan, as the kernels found it.
struct PlanStatus {
  std::int32_t first_invalid = -1;  ///< t * K + k of the first id outside [-1, E), which got no row; -1: none
  std::int32_t dropped =
      0;  ///< Selections without a row because `max_rows` or `rows_per_expert` was too small
  std::int32_t rows_needed =
      0;                      ///< packed: max_rows, padded: rows_per_expert, with which none would be dropped
  std::int32_t num_rows = 0;  ///< Rows that carry tokens
};

/// Rows of the experts from the ids: those of one expert lie together, in the order of (token, k).
struct PlanInput {
  Selections selections;
  std::int32_t num_experts = 1;
  std::int64_t rows_per_expert = 0;  ///< > 0, padded: expert e starts at row e * rows_per_expert. 0, packed:
  std::int64_t alignment = 1;        ///< they follow each other, each at a multiple of this
  std::int64_t max_rows = 0;         ///< Rows there is memory for
};

/// Row numbers are 32 bits wide, as grouped GEMMs take them.
struct Plan {
  std::int32_t* counts = nullptr;  ///< [E] rows of each expert that carry tokens
  std::int32_t* starts =
      nullptr;  ///< [E + 1] first row of each expert; starts[E]: end of the last one's block
  std::int32_t* positions =
      nullptr;  ///< [T, K] row of each selection, -1: none. Beyond the live tokens untouched
  std::int32_t* selections = nullptr;  ///< [max_rows] t * K + k of each row, -1: padding; may be null
  PlanStatus* status = nullptr;        ///< [1]
};

[[nodiscard]] std::int64_t plan_workspace_bytes(const PlanInput& input);
/// Three kernels: count, prefix over tokens and then experts, place. `workspace` is aligned to 16 bytes; its content is
/// lost.
void make_plan(const PlanInput& input, const Plan& plan, void* workspace, Stream stream,
               LaunchLimit limit = {});

/// How the block scales of rows [N, ceil(H / block)] lie.
enum class ScaleLayout : std::uint8_t {
  row_major,  ///< Dense, as on the CPU: the scales of a row follow each other.
  /// As tensor-memory copies want them: one column after the other, columns `stride` rows apart. A column is one fp32
  /// scale of every row, or four ue8m0 scales in one 32-bit word, the first in the lowest byte (those beyond the last
  /// block are 0). With `matrix_rows` m > 0 the rows are cut into matrices of m rows, each with all its columns.
  column_major,
};

struct Scales {
  void* data = nullptr;
  ScaleType type = ScaleType::none;
  ScaleLayout layout = ScaleLayout::row_major;
  std::int64_t block = 128;
  std::int64_t stride = 0;       ///< column_major: rows from one column to the next; a multiple of 4
  std::int64_t matrix_rows = 0;  ///< column_major: rows of each matrix; 0: all rows are one
};

/// Bytes that `rows` rows of H elements need: all of them for one matrix, else the whole matrices.
[[nodiscard]] std::int64_t scale_buffer_bytes(const Scales& scales, std::int64_t rows, std::int64_t hidden);

/// Rows in device memory.
struct DeviceRows {
  void* data = nullptr;
  DType dtype = DType::bf16;
  std::int64_t stride_bytes = 0;  ///< From one row to the next. Multiples of 16, as of `data`, are fastest
};

/// Writes token t to row positions[t, k], for every k: one read, K writes. fp8 `to` from wider tokens is quantised on the
/// way as PackKernels::quantise does it; else dtypes are equal and bytes are copied, with their scales.
struct Gather {
  DeviceRows from;                            ///< [T, H]
  const std::int32_t* positions = nullptr;    ///< [T, K] as of Plan; null with K = 1: row t
  std::int64_t num_tokens = 0;                ///< T
  std::int32_t top_k = 1;                     ///< K
  const std::int32_t* live_tokens = nullptr;  ///< As in Selections
  std::int64_t hidden = 0;                    ///< H
  DeviceRows to;                              ///< [N, H]; rows that no position names stay as they are
  Scales scales;                              ///< Of `to`
  Scales from_scales;  ///< Of `from`, where that is fp8 with scales: copied. type none: there are none
};
void gather(const Gather& gather, Stream stream, LaunchLimit limit = {});

/// Writes row i to row destinations[i] (-1: nowhere), with its scales. What arrived goes to its expert; with
/// Plan::selections as destinations rows return to the order of (token, k).
struct Scatter {
  DeviceRows from;                             ///< [N, H]
  const std::int32_t* destinations = nullptr;  ///< [N]; no two alike but -1
  std::int64_t num_rows = 0;                   ///< N
  const std::int32_t* live_rows = nullptr;  ///< Where not null: only the first *live_rows, read by the kernel
  std::int64_t hidden = 0;                  ///< H
  DeviceRows to;                            ///< Of the same dtype
  Scales from_scales;                       ///< type none: there are none
  Scales to_scales;                         ///< Of the same type and block; the layout may differ
};
void scatter(const Scatter& scatter, Stream stream, LaunchLimit limit = {});

/// out[t] = sum over k of weights[t, k] * rows[positions[t, k]], as PackKernels::weighted_sum: fp32 fma in k order,
/// rounded once. A position of -1 adds nothing and its weight is not read.
struct Combine {
  DeviceRows rows;                            ///< [N, H] f32, f16 or bf16
  const std::int32_t* positions = nullptr;    ///< [T, K]
  const float* weights = nullptr;             ///< [T, K]
  std::int64_t num_tokens = 0;                ///< T
  std::int32_t top_k = 1;                     ///< K
  const std::int32_t* live_tokens = nullptr;  ///< As in Selections; rows of `out` beyond stay as they are
  std::int64_t hidden = 0;                    ///< H
  DeviceRows out;                             ///< [T, H] f32, f16 or bf16; every element is written
  bool accumulate = false;                    ///< Start from the old value of `out` instead of 0
  std::int64_t weight_stride = 0;             ///< Weights from one token to the next; 0: K
};
void combine(const Combine& combine, Stream stream, LaunchLimit limit = {});

}  // namespace shunt::cuda

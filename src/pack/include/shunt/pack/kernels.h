#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include <shunt/core/dtype.h>

namespace shunt {

/// Instruction set of a kernel table.
enum class Isa : std::uint8_t { scalar, avx2, avx512, neon };
[[nodiscard]] const char* isa_name(Isa isa) noexcept;

/// One row of a run-time dtype, with block scales where it is fp8.
struct QuantisedRow {
  void* elements = nullptr;  ///< [H] of the target dtype
  void* scales = nullptr;    ///< [ceil(H / block)] of the scale type; null for ScaleType::none
};

/// How rows become fp8. block >= 1 elements share a scale; the last block may be short.
/// Source: DeepEP's per-token cast: scale = max(amax, 1e-4) / max_finite, q = x / scale, both by IEEE division in fp32,
///         then to nearest even, saturating. ue8m0: the scale is rounded up to a power of two first. NaN elements stay
///         out of amax and become NaN; with ScaleType::none elements are only converted.
struct Quantisation {
  DType dtype = DType::f8e4m3;
  ScaleType scale = ScaleType::f32;
  std::int64_t block = 128;
  [[nodiscard]] std::int64_t num_scales(std::int64_t hidden) const noexcept {
    return (hidden + block - 1) / block;
  }
};

/// out[h] = sum over k of weights[k] * rows[k][h].
struct WeightedSum {
  const void* const* rows = nullptr;  ///< [K] pointers to rows [H] of row_dtype; null: this k is skipped
  const float* weights = nullptr;     ///< [K]; the weight of a skipped k is not read
  std::int64_t num_rows = 0;          ///< K >= 0; with nothing to add the output is 0 (or the old value)
  std::int64_t hidden = 0;            ///< H
  DType row_dtype = DType::bf16;      ///< f32, f16 or bf16
  DType out_dtype = DType::bf16;      ///< f32, f16 or bf16
  void* out = nullptr;                ///< [H] of out_dtype; every element is written
  bool accumulate = false;            ///< Start from the old value of `out` instead of 0
  /// Nobody reads `out` soon: it is written past the caches, as copy_streaming does, where the ISA can, dtypes are equal
  /// and `out` lies at a multiple of 64 bytes.
  bool streaming = false;
  /// [K] rows of the sum that will be asked for next, or null: with `streaming` they are fetched ahead, so that reading does
  /// not pause between two sums. Pointers may be null; nothing else depends on them.
  const void* const* next_rows = nullptr;
};

/// to[h] = convert(from[h] * scale of its block * factor): reads a received row, writes an expert's row.
struct ScaledCopy {
  const void* from = nullptr;         ///< [H] of from_dtype
  const void* from_scales = nullptr;  ///< [ceil(H / block)]; null where from_scale is none
  void* to = nullptr;                 ///< [H] of to_dtype (f32, f16 or bf16)
  std::int64_t hidden = 0;
  DType from_dtype = DType::bf16;
  ScaleType from_scale = ScaleType::none;
  std::int64_t block = 128;
  DType to_dtype = DType::bf16;
  float factor = 1.0F;  ///< (from * scale) * factor, two fp32 multiplications in this order
};

/// The K largest of each row of logits [T, E].
struct TopK {
  const void* logits = nullptr;  ///< [T, E] dense; finite
  DType dtype = DType::f32;      ///< f32, f16 or bf16
  std::int64_t num_tokens = 0;   ///< T
  std::int64_t num_experts = 1;  ///< E
  std::int32_t top_k = 1;        ///< K <= E
  std::int32_t* ids = nullptr;   ///< [T, K], largest first; of equals (0 and -0 are) the lower index first
  float* values = nullptr;       ///< [T, K], the logits of the chosen
};

/// The kernels of one instruction set. Every table gives the same bits as the scalar one, for every pointer
/// alignment and length; NaN results are NaN everywhere but their payload may differ.
/// Result:  weighted_sum: acc = 0 or the old value; acc = fma(w, row, acc) in fp32, in k order; rounded once, to nearest
///          even; subnormals kept.
/// Threads: all functions are pure and reentrant. Source and destination must not overlap.
struct PackKernels {
  Isa isa;
  /// memcpy for rows that the destination's core will read soon.
  void (*copy)(void* to, const void* from, std::int64_t bytes);
  /// memcpy past the caches where the ISA has streaming stores (else as `copy`). The bytes are visible to a reader that
  /// acquires a signal only after store_fence().
  void (*copy_streaming)(void* to, const void* from, std::int64_t bytes);
  /// Quantises row [H] of f32, f16 or bf16.
  void (*quantise)(const void* from, DType from_dtype, std::int64_t hidden, const Quantisation& how,
                   const QuantisedRow& to);
  void (*weighted_sum)(const WeightedSum& sum);
  void (*scaled_copy)(const ScaledCopy& copy);
  void (*top_k)(const TopK& of);
};

/// Orders streaming stores before later stores. A no-op where the ISA has none.
void store_fence() noexcept;

/// Tables this build has and this CPU can run, slowest first; `scalar` is always there.
[[nodiscard]] std::span<const Isa> available_isas();

/// Table of one instruction set.
/// Errors: Errc::unavailable where it is not among available_isas().
[[nodiscard]] const PackKernels& pack_kernels(Isa isa);

/// The fastest table, or the one that the environment variable SHUNT_FORCE_ISA names (scalar, avx2, avx512, neon).
/// Errors: Errc::unavailable / invalid_argument on a forced one that cannot run or is not a name.
[[nodiscard]] const PackKernels& pack_kernels();

}  // namespace shunt

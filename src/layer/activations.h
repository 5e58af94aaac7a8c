#pragma once

#include <cstdint>

#include <shunt/core/dtype.h>
#include <shunt/layer/expert_ffn.h>

namespace shunt::detail {

/// Writes after [F] from before [F], of swiglu from before [2 F]: gates, then what they gate. Both of `dtype`, f32 or
/// bf16. Computed in float32 with an exp of our own (relative error below 3e-7) and, for gelu, an erf of absolute error
/// below 2e-7 (Abramowitz and Stegun 7.1.26), since those of C libraries differ in bits and do not run in vectors.
void activate(Activation kind, DType dtype, const void* before, std::int64_t ffn, void* after);

/// The way back of one row. `grad` [F] is the gradient by `after`, not yet multiplied by `weight`; it is overwritten.
/// `before` becomes its own gradient, with the weight; `weighted` [F] of dtype becomes weight * after.
/// Result: sum of grad * after, in a fixed order.
float activate_backward(Activation kind, DType dtype, void* before, float* grad, std::int64_t ffn,
                        float weight, void* weighted);

/// to [n] += from [n] of `dtype`, times weight.
void add_row(DType dtype, const void* from, std::int64_t n, float weight, float* to);
/// Sum of from [n] of `dtype` times by [n], in a fixed order.
float dot_row(DType dtype, const void* from, std::int64_t n, const float* by);
/// Converts rows of n elements; f32 to bf16 rounds to nearest even.
void to_f32(DType dtype, const void* from, std::int64_t n, float* to);
void from_f32(DType dtype, const float* from, std::int64_t n, void* to);

}  // namespace shunt::detail

// The specification in code: one element at a time, through the conversions of core. Every vector table is
// tested against this one, so nothing here is made fast.
#include <cmath>
#include <cstddef>
#include <cstring>

#include "../tables.h"

namespace shunt::detail {
namespace {

void copy(void* to, const void* from, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

void quantise(const void* from, DType from_dtype, std::int64_t hidden, const Quantisation& how,
              const QuantisedRow& to) {
  for (std::int64_t b = 0; b < how.num_scales(hidden); ++b) {
    const std::int64_t begin = b * how.block;
    const std::int64_t end = hidden - begin < how.block ? hidden : begin + how.block;
    float scale = 1;
    if (how.scale != ScaleType::none) {
      float amax = 0;
      for (std::int64_t h = begin; h < end; ++h) {
        const float magnitude = std::fabs(load_element(from_dtype, from, h));
        if (magnitude > amax) amax = magnitude;  // false for NaN, which so stays out of the maximum
      }
      scale = (amax > 1e-4F ? amax : 1e-4F) / static_cast<float>(max_finite(how.dtype));
      if (how.scale == ScaleType::ue8m0) {
        const std::uint8_t power = f32_to_ue8m0(scale);
        static_cast<std::uint8_t*>(to.scales)[b] = power;
        scale = ue8m0_to_f32(power);
      } else {
        store_element(DType::f32, to.scales, b, scale);
      }
    }
    for (std::int64_t h = begin; h < end; ++h)
      store_element(how.dtype, to.elements, h, load_element(from_dtype, from, h) / scale);
  }
}

void weighted_sum(const WeightedSum& sum) {
  for (std::int64_t h = 0; h < sum.hidden; ++h) {
    float acc = sum.accumulate ? load_element(sum.out_dtype, sum.out, h) : 0.0F;
    for (std::int64_t k = 0; k < sum.num_rows; ++k)
      if (sum.rows[k] != nullptr)
        acc = std::fma(sum.weights[k], load_element(sum.row_dtype, sum.rows[k], h), acc);
    store_element(sum.out_dtype, sum.out, h, acc);
  }
}

void scaled_copy(const ScaledCopy& copy) {
  for (std::int64_t h = 0; h < copy.hidden; ++h) {
    const std::int64_t b = h / copy.block;
    float scale = 1;
    if (copy.from_scale == ScaleType::f32) scale = load_element(DType::f32, copy.from_scales, b);
    if (copy.from_scale == ScaleType::ue8m0)
      scale = ue8m0_to_f32(static_cast<const std::uint8_t*>(copy.from_scales)[b]);
    const float value = load_element(copy.from_dtype, copy.from, h) * scale * copy.factor;
    store_element(copy.to_dtype, copy.to, h, value);
  }
}

void top_k(const TopK& of) {
  for (std::int64_t t = 0; t < of.num_tokens; ++t) {
    std::int32_t* ids = of.ids + t * of.top_k;
    float* values = of.values + t * of.top_k;
    std::int64_t held = 0;
    for (std::int64_t e = 0; e < of.num_experts; ++e) {
      const float value = load_element(of.dtype, of.logits, t * of.num_experts + e);
      std::int64_t place = held;
      while (place > 0 && value > values[place - 1]) --place;
      if (place == of.top_k) continue;
      if (held < of.top_k) ++held;
      for (std::int64_t i = held - 1; i > place; --i) {
        ids[i] = ids[i - 1];
        values[i] = values[i - 1];
      }
      ids[place] = static_cast<std::int32_t>(e);
      values[place] = value;
    }
  }
}

}  // namespace

const PackKernels kScalarKernels = {Isa::scalar, copy, copy, quantise, weighted_sum, scaled_copy, top_k};

}  // namespace shunt::detail

#pragma once

// The largest of each row over a vector type V, under the rules of vector_kernels.h. Beyond load, V gives max,
// horizontal_max and equal (a bit for each lane).

#include <cstddef>
#include <cstdint>

#include "vector_kernels.h"

namespace shunt::detail {
namespace {

/// Longer rows are left to the scalar function.
constexpr std::int64_t kMostExperts = 4096;

/// Writes the k largest of `row`, `vectors` whole vectors of which what lies beyond the experts is -infinity. Every
/// round finds the largest value, then the first that equals it, and takes that out: no branch depends on the data.
template <class V>
void take_largest(float* row, std::int64_t vectors, std::int32_t k, std::int32_t* ids, float* values) {
  constexpr std::int64_t kGroup = 64 / V::kWidth;  // vectors whose lanes fill one word of bits
  const auto* bytes = reinterpret_cast<const std::byte*>(row);
  const auto load = [bytes](std::int64_t v) {
    return V::template load<DType::f32>(bytes + v * V::kWidth * 4);
  };
  for (std::int32_t round = 0; round < k; ++round) {
    auto best = load(0);
    for (std::int64_t v = 1; v < vectors; ++v) best = V::max(best, load(v));
    const auto largest = V::broadcast(V::horizontal_max(best));
    std::int64_t place = 0;
    for (std::int64_t group = (vectors - 1) / kGroup; group >= 0; --group) {
      const std::int64_t end = vectors < (group + 1) * kGroup ? vectors : (group + 1) * kGroup;
      std::uint64_t equal = 0;
      for (std::int64_t v = group * kGroup; v < end; ++v)
        equal |= std::uint64_t{V::equal(load(v), largest)} << (v % kGroup * V::kWidth);
      if (equal != 0) place = group * 64 + __builtin_ctzll(equal);
    }
    ids[round] = static_cast<std::int32_t>(place);
    values[round] = row[place];
    row[place] = -__builtin_inff();
  }
}

template <class V, DType D>
void top_k_of(const TopK& of) {
  alignas(64) float row[kMostExperts];
  const std::int64_t vectors = (of.num_experts + V::kWidth - 1) / V::kWidth;
  const std::int64_t whole = of.num_experts / V::kWidth;
  for (std::int64_t t = 0; t < of.num_tokens; ++t) {
    const std::byte* from = static_cast<const std::byte*>(of.logits) + t * of.num_experts * size_of(D);
    auto* to = reinterpret_cast<std::byte*>(row);
    for (std::int64_t v = 0; v < whole; ++v)
      V::template store<DType::f32>(to + v * V::kWidth * 4,
                                    V::template load<D>(from + v * V::kWidth * size_of(D)));
    if (whole < vectors) {
      V::template store<DType::f32>(to + whole * V::kWidth * 4, V::broadcast(-__builtin_inff()));
      V::template store_tail<DType::f32>(
          to + whole * V::kWidth * 4,
          V::template load_tail<D>(from + whole * V::kWidth * size_of(D), of.num_experts % V::kWidth),
          of.num_experts % V::kWidth);
    }
    take_largest<V>(row, vectors, of.top_k, of.ids + t * of.top_k, of.values + t * of.top_k);
  }
}

template <class V>
void top_k(const TopK& of) {
  if (of.num_experts > kMostExperts) return kScalarKernels.top_k(of);
  switch (of.dtype) {
    case DType::f32:
      return top_k_of<V, DType::f32>(of);
    case DType::f16:
      return top_k_of<V, DType::f16>(of);
    case DType::bf16:
      return top_k_of<V, DType::bf16>(of);
    case DType::f8e4m3:
    case DType::f8e5m2:
      return;
  }
}

}  // namespace
}  // namespace shunt::detail

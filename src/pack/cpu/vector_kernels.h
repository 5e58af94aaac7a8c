#pragma once

// Kernels over a vector type V of one instruction set. Everything is in an unnamed namespace and nothing
// calls an inline function of another header at run time: a function that two files share could be linked in
// the version that was compiled for the wider instruction set, and then run on a CPU without it.
//
// V gives: F, kWidth, kSumUnits, zero, broadcast, fma, mul, div, max_magnitude, reduce_max, and per dtype
// load, store (kWidth elements), load_tail, store_tail (fewer), load_pair (2 * kWidth elements as even and
// odd ones: for bf16 and fp8 this is a shift and a mask where natural order needs shuffles), store_pair. With kStreams the
// stores have a second parameter: past the caches, to a multiple of their size.

#include <cstddef>
#include <cstdint>

#include "../tables.h"

namespace shunt::detail {
namespace {

constexpr std::int64_t size_of(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::f16 || dtype == DType::bf16 ? 2 : 1;
}

constexpr float without_payload(float x) {
  return x == x ? x : __builtin_nanf("");
}

/// Asks for a line in order to write it. Destinations are mostly lines that another core has read or that
/// fell out of this core's caches since the last step; stores alone keep few such lines under way. Where the
/// instruction is not known it does nothing.
inline void prefetch_to_write(const std::byte* at) {
#if defined(__x86_64__)
  __asm__ volatile("prefetchw %0" ::"m"(*at));
#else
  __builtin_prefetch(at, 1);
#endif
}

/// How far ahead of its stores a kernel asks for destination lines.
constexpr std::int64_t kWriteAhead = 512;

/// Copies as many whole lines of 64 bytes as fit and returns their bytes. L gives load and store of one.
/// Rows of two pages and more go in four quarters side by side: prefetchers stop at the end of a page, so
/// that one stream from another core's cache keeps fewer lines under way than four. All loads come before the
/// stores, because a load waits for an earlier store to the same place in another page.
template <class L>
std::int64_t copy_lines(std::byte* out, const std::byte* in, std::int64_t bytes) {
  const std::int64_t quarter = bytes >= 8192 ? bytes / 512 * 128 : 0;
  std::int64_t i = 0;
  for (; i < quarter; i += 128) {
    using Line = decltype(L::load(in));
    Line lines[8];
    if constexpr (L::kCached)
      for (int n = 0; n < 8; ++n) prefetch_to_write(out + i + n / 2 * quarter + n % 2 * 64 + kWriteAhead);
    for (int n = 0; n < 8; ++n) lines[n] = L::load(in + i + n / 2 * quarter + n % 2 * 64);
    for (int n = 0; n < 8; ++n) L::store(out + i + n / 2 * quarter + n % 2 * 64, lines[n]);
  }
  for (i = 4 * quarter; i + 256 <= bytes; i += 256) {
    using Line = decltype(L::load(in));
    Line lines[4];
    if constexpr (L::kCached)
      for (int n = 0; n < 4; ++n) prefetch_to_write(out + i + n * 64 + kWriteAhead);
    for (int n = 0; n < 4; ++n) lines[n] = L::load(in + i + n * 64);
    for (int n = 0; n < 4; ++n) L::store(out + i + n * 64, lines[n]);
  }
  for (; i + 64 <= bytes; i += 64) L::store(out + i, L::load(in + i));
  return i;
}

/// Asks for the lines of the Bytes that lie Ahead of `row + offset`. Rows come from other cores' caches and
/// many at a time, more than the hardware prefetchers follow; past the end of a row it asks in vain.
template <std::int64_t Bytes, std::int64_t Ahead>
void prefetch(const std::byte* row, std::int64_t offset) {
  const auto at = reinterpret_cast<std::uintptr_t>(row) + static_cast<std::uintptr_t>(offset + Ahead);
  for (std::uintptr_t line = 0; line < static_cast<std::uintptr_t>(Bytes); line += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(at + line));
}

/// A run of elements that a kernel holds in kVectors registers, in an order of its own if From and To both
/// allow.
template <class V, DType From, DType To>
struct Unit {
  static constexpr bool kPaired = From != DType::f32 && From != DType::f16 && To == DType::bf16;
  static constexpr int kVectors = kPaired ? 2 : 1;
  static constexpr std::int64_t kElements = kVectors * V::kWidth;
  using F = typename V::F;

  template <DType D>
  static void load(const std::byte* base, std::int64_t index, F* x) {
    if constexpr (kPaired)
      V::template load_pair<D>(base + index * size_of(D), x[0], x[1]);
    else
      x[0] = V::template load<D>(base + index * size_of(D));
  }
  static void store(std::byte* base, std::int64_t index, const F* x) {
    if constexpr (kPaired)
      V::template store_pair<To>(base + index * size_of(To), x[0], x[1]);
    else
      V::template store<To>(base + index * size_of(To), x[0]);
  }
  static void stream(std::byte* base, std::int64_t index, const F* x) {
    if constexpr (kPaired)
      V::template store_pair<To, true>(base + index * size_of(To), x[0], x[1]);
    else
      V::template store<To, true>(base + index * size_of(To), x[0]);
  }
};

/// The columns [h, h + Units * kElements) of the sum: the accumulators stay in registers over all k, so each
/// row is read once and the output written once.
template <class V, DType Row, DType Out, int Units>
void sum_block(const WeightedSum& sum, std::int64_t h) {
  using U = Unit<V, Row, Out>;
  using F = typename V::F;
  auto* out = static_cast<std::byte*>(sum.out);
  F acc[Units][U::kVectors];
  for (int u = 0; u < Units; ++u) {
    if (sum.accumulate)
      U::template load<Out>(out, h + u * U::kElements, acc[u]);
    else
      for (int v = 0; v < U::kVectors; ++v) acc[u][v] = V::zero();
  }
  for (std::int64_t k = 0; k < sum.num_rows; ++k) {
    const auto* row = static_cast<const std::byte*>(sum.rows[k]);
    if (row == nullptr) continue;
    const F weight = V::broadcast(sum.weights[k]);
    prefetch<Units * U::kElements * size_of(Row), 512>(row, h * size_of(Row));
    for (int u = 0; u < Units; ++u) {
      F x[U::kVectors];
      U::template load<Row>(row, h + u * U::kElements, x);
      for (int v = 0; v < U::kVectors; ++v) acc[u][v] = V::fma(weight, x[v], acc[u][v]);
    }
  }
  for (int u = 0; u < Units; ++u) U::store(out, h + u * U::kElements, acc[u]);
}

/// Bytes ahead of its loads for which a sum of rows from memory asks; what lies beyond a row is of the next sum.
constexpr std::int64_t kReadAhead = 2048;

/// Sum of K rows, none null, of [0, returned) columns, past the caches. Few instructions for each line leave room for more
/// loads under way, so K is known and the weights stay in registers.
template <class V, DType D, int K>
std::int64_t sum_streamed(const WeightedSum& sum, const std::byte* const* rows, const std::byte* const* next,
                          const float* weights) {
  using U = Unit<V, D, D>;
  using F = typename V::F;
  constexpr int kUnits = 128 / (U::kElements * size_of(D));
  constexpr std::int64_t kBytes = 128;
  auto* out = static_cast<std::byte*>(sum.out);
  F weight[K];
  for (int k = 0; k < K; ++k) weight[k] = V::broadcast(weights[k]);
  const std::int64_t bytes = sum.hidden * size_of(D);
  const std::int64_t end = bytes / kBytes * kBytes;
  for (std::int64_t at = 0; at < end; at += kBytes) {
    const std::int64_t ahead = at + kReadAhead;
    F acc[kUnits][U::kVectors];
    for (int u = 0; u < kUnits; ++u)
      for (int v = 0; v < U::kVectors; ++v) acc[u][v] = V::zero();
    for (int k = 0; k < K; ++k) {
      const std::byte* later = ahead < bytes ? rows[k] + ahead : next[k] + (ahead - bytes);
      __builtin_prefetch(later);
      __builtin_prefetch(later + 64);
      for (int u = 0; u < kUnits; ++u) {
        F x[U::kVectors];
        U::template load<D>(rows[k] + at, u * U::kElements, x);
        for (int v = 0; v < U::kVectors; ++v) acc[u][v] = V::fma(weight[k], x[v], acc[u][v]);
      }
    }
    for (int u = 0; u < kUnits; ++u) U::stream(out + at, u * U::kElements, acc[u]);
  }
  return end / size_of(D);
}

/// The columns [0, returned) past the caches, where that can be.
template <class V, DType D>
std::int64_t try_sum_streamed(const WeightedSum& sum) {
  constexpr std::int64_t kMostRows = 8;
  if (sum.accumulate || sum.num_rows > kMostRows || reinterpret_cast<std::uintptr_t>(sum.out) % 64 != 0)
    return 0;
  const std::byte* rows[kMostRows];
  const std::byte* next[kMostRows];
  float weights[kMostRows];
  int count = 0;
  for (std::int64_t k = 0; k < sum.num_rows; ++k) {
    if (sum.rows[k] == nullptr) continue;
    rows[count] = static_cast<const std::byte*>(sum.rows[k]);
    const void* later = sum.next_rows == nullptr ? nullptr : sum.next_rows[k];
    next[count] = later == nullptr ? rows[count] : static_cast<const std::byte*>(later);
    weights[count++] = sum.weights[k];
  }
  switch (count) {
    case 1:
      return sum_streamed<V, D, 1>(sum, rows, next, weights);
    case 2:
      return sum_streamed<V, D, 2>(sum, rows, next, weights);
    case 4:
      return sum_streamed<V, D, 4>(sum, rows, next, weights);
    case 8:
      return sum_streamed<V, D, 8>(sum, rows, next, weights);
    default:
      return 0;
  }
}

/// The columns [h, h + count), count <= kWidth.
template <class V, DType Row, DType Out>
void sum_tail(const WeightedSum& sum, std::int64_t h, std::int64_t count) {
  auto* out = static_cast<std::byte*>(sum.out) + h * size_of(Out);
  typename V::F acc = sum.accumulate ? V::template load_tail<Out>(out, count) : V::zero();
  for (std::int64_t k = 0; k < sum.num_rows; ++k) {
    const auto* row = static_cast<const std::byte*>(sum.rows[k]);
    if (row == nullptr) continue;
    const auto x = V::template load_tail<Row>(row + h * size_of(Row), count);
    acc = V::fma(V::broadcast(sum.weights[k]), x, acc);
  }
  V::template store_tail<Out>(out, acc, count);
}

bool any_nan_weight(const WeightedSum& sum) {
  for (std::int64_t k = 0; k < sum.num_rows; ++k)
    if (sum.rows[k] != nullptr && sum.weights[k] != sum.weights[k]) return true;
  return false;
}

template <class V, DType Row, DType Out>
void sum_typed(const WeightedSum& sum) {
  using U = Unit<V, Row, Out>;
  constexpr std::int64_t kBlock = V::kSumUnits * U::kElements;
  std::int64_t h = 0;
  if (U::kPaired && any_nan_weight(sum)) {  // a payload could break store_pair; the output is NaN anyhow
    for (; h < sum.hidden; h += V::kWidth)
      sum_tail<V, Row, Out>(sum, h, sum.hidden - h < V::kWidth ? sum.hidden - h : V::kWidth);
    return;
  }
  if constexpr (V::kStreams && Row == Out) {
    if (sum.streaming) h = try_sum_streamed<V, Row>(sum);
  }
  for (; h + kBlock <= sum.hidden; h += kBlock) sum_block<V, Row, Out, V::kSumUnits>(sum, h);
  for (; h + U::kElements <= sum.hidden; h += U::kElements) sum_block<V, Row, Out, 1>(sum, h);
  for (; h < sum.hidden; h += V::kWidth)
    sum_tail<V, Row, Out>(sum, h, sum.hidden - h < V::kWidth ? sum.hidden - h : V::kWidth);
}

template <class V, DType Row>
void sum_from(const WeightedSum& sum) {
  switch (sum.out_dtype) {
    case DType::f32:
      return sum_typed<V, Row, DType::f32>(sum);
    case DType::f16:
      return sum_typed<V, Row, DType::f16>(sum);
    case DType::bf16:
      return sum_typed<V, Row, DType::bf16>(sum);
    case DType::f8e4m3:
    case DType::f8e5m2:
      return;
  }
}

template <class V>
void weighted_sum(const WeightedSum& sum) {
  switch (sum.row_dtype) {
    case DType::f32:
      return sum_from<V, DType::f32>(sum);
    case DType::f16:
      return sum_from<V, DType::f16>(sum);
    case DType::bf16:
      return sum_from<V, DType::bf16>(sum);
    case DType::f8e4m3:
    case DType::f8e5m2:
      return;
  }
}

/// Elements [h, end), which share a scale: x * first, or (x * first) * second.
template <class V, DType From, DType To, bool Twice>
void scale_block(const std::byte* from, std::byte* to, std::int64_t h, std::int64_t end, float first_value,
                 float second_value) {
  using U = Unit<V, From, To>;
  using F = typename V::F;
  const F first = V::broadcast(without_payload(first_value));
  const F second = V::broadcast(without_payload(second_value));
  const auto product = [&](F x) {
    x = V::mul(x, first);
    return Twice ? V::mul(x, second) : x;
  };
  for (; h + U::kElements <= end; h += U::kElements) {
    F x[U::kVectors];
    prefetch<U::kElements * size_of(From), 1024>(from, h * size_of(From));
    prefetch_to_write(to + h * size_of(To) + kWriteAhead);
    U::template load<From>(from, h, x);
    for (int v = 0; v < U::kVectors; ++v) x[v] = product(x[v]);
    U::store(to, h, x);
  }
  for (; h < end; h += V::kWidth) {
    const std::int64_t count = end - h < V::kWidth ? end - h : V::kWidth;
    const F x = V::template load_tail<From>(from + h * size_of(From), count);
    V::template store_tail<To>(to + h * size_of(To), product(x), count);
  }
}

template <class V, DType From, DType To>
void scaled_copy_typed(const ScaledCopy& copy) {
  const auto* from = static_cast<const std::byte*>(copy.from);
  auto* to = static_cast<std::byte*>(copy.to);
  if (copy.from_scale == ScaleType::none)
    return scale_block<V, From, To, false>(from, to, 0, copy.hidden, copy.factor, 1.0F);
  std::int64_t b = 0;
  for (std::int64_t h = 0; h < copy.hidden; h += copy.block, ++b) {
    const float scale = copy.from_scale == ScaleType::f32
                            ? load_element(DType::f32, copy.from_scales, b)
                            : ue8m0_to_f32(static_cast<const std::uint8_t*>(copy.from_scales)[b]);
    const std::int64_t end = copy.hidden - h < copy.block ? copy.hidden : h + copy.block;
    if (copy.factor == 1.0F)
      scale_block<V, From, To, false>(from, to, h, end, scale, 1.0F);
    else
      scale_block<V, From, To, true>(from, to, h, end, scale, copy.factor);
  }
}

template <class V, DType From>
void scaled_copy_from(const ScaledCopy& copy) {
  switch (copy.to_dtype) {
    case DType::f32:
      return scaled_copy_typed<V, From, DType::f32>(copy);
    case DType::f16:
      return scaled_copy_typed<V, From, DType::f16>(copy);
    case DType::bf16:
      return scaled_copy_typed<V, From, DType::bf16>(copy);
    case DType::f8e4m3:
    case DType::f8e5m2:
      return;
  }
}

template <class V>
void scaled_copy(const ScaledCopy& copy) {
  if (copy.from_dtype == copy.to_dtype && copy.from_scale == ScaleType::none && copy.factor == 1.0F)
    return V::copy(copy.to, copy.from, copy.hidden * size_of(copy.to_dtype));
  switch (copy.from_dtype) {
    case DType::f32:
      return scaled_copy_from<V, DType::f32>(copy);
    case DType::f16:
      return scaled_copy_from<V, DType::f16>(copy);
    case DType::bf16:
      return scaled_copy_from<V, DType::bf16>(copy);
    case DType::f8e4m3:
      return scaled_copy_from<V, DType::f8e4m3>(copy);
    case DType::f8e5m2:
      return scaled_copy_from<V, DType::f8e5m2>(copy);
  }
}

template <class V, DType From>
float largest_magnitude(const std::byte* from, std::int64_t count) {
  using F = typename V::F;
  // Four maxima: one would wait for its own latency at every step.
  F best[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  std::int64_t h = 0;
  for (; h + 4 * V::kWidth <= count; h += 4 * V::kWidth)
    for (int v = 0; v < 4; ++v)
      best[v] = V::max_magnitude(V::template load<From>(from + (h + v * V::kWidth) * size_of(From)), best[v]);
  for (; h + V::kWidth <= count; h += V::kWidth)
    best[0] = V::max_magnitude(V::template load<From>(from + h * size_of(From)), best[0]);
  if (h < count)
    best[0] = V::max_magnitude(V::template load_tail<From>(from + h * size_of(From), count - h), best[0]);
  for (int v = 1; v < 4; ++v) best[0] = V::max_magnitude(best[v], best[0]);
  return V::reduce_max(best[0]);
}

template <class V, DType From, DType To>
void quantise_typed(const std::byte* from, std::int64_t hidden, const Quantisation& how,
                    const QuantisedRow& to) {
  auto* out = static_cast<std::byte*>(to.elements);
  const auto limit = static_cast<float>(max_finite(To));
  std::int64_t b = 0;
  for (std::int64_t begin = 0; begin < hidden; begin += how.block, ++b) {
    const std::int64_t end = hidden - begin < how.block ? hidden : begin + how.block;
    float scale = 1;
    if (how.scale != ScaleType::none) {
      const float amax = largest_magnitude<V, From>(from + begin * size_of(From), end - begin);
      scale = (amax > 1e-4F ? amax : 1e-4F) / limit;
      if (how.scale == ScaleType::ue8m0) {
        const std::uint8_t power = f32_to_ue8m0(scale);
        static_cast<std::uint8_t*>(to.scales)[b] = power;
        scale = ue8m0_to_f32(power);
      } else {
        store_element(DType::f32, to.scales, b, scale);
      }
    }
    const auto divisor = V::broadcast(scale);
    std::int64_t h = begin;
    for (; h + V::kWidth <= end; h += V::kWidth)
      V::template store<To>(out + h, V::div(V::template load<From>(from + h * size_of(From)), divisor));
    if (h < end) {
      const auto x = V::template load_tail<From>(from + h * size_of(From), end - h);
      V::template store_tail<To>(out + h, V::div(x, divisor), end - h);
    }
  }
}

template <class V, DType From>
void quantise_from(const void* from, std::int64_t hidden, const Quantisation& how, const QuantisedRow& to) {
  const auto* bytes = static_cast<const std::byte*>(from);
  if (how.dtype == DType::f8e4m3) return quantise_typed<V, From, DType::f8e4m3>(bytes, hidden, how, to);
  if (how.dtype == DType::f8e5m2) return quantise_typed<V, From, DType::f8e5m2>(bytes, hidden, how, to);
}

template <class V>
void quantise(const void* from, DType from_dtype, std::int64_t hidden, const Quantisation& how,
              const QuantisedRow& to) {
  switch (from_dtype) {
    case DType::f32:
      return quantise_from<V, DType::f32>(from, hidden, how, to);
    case DType::f16:
      return quantise_from<V, DType::f16>(from, hidden, how, to);
    case DType::bf16:
      return quantise_from<V, DType::bf16>(from, hidden, how, to);
    case DType::f8e4m3:
    case DType::f8e5m2:
      return;
  }
}

}  // namespace
}  // namespace shunt::detail

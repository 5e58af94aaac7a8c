// AVX2 with FMA and F16C.
#include <immintrin.h>

#include <cstring>

#include "top_k.h"
#include "vector_kernels.h"

namespace shunt::detail {
namespace {

__m256i load_bytes(const std::byte* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}
void store_bytes(std::byte* at, __m256i x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), x);
}

struct PlainLine {
  static constexpr bool kCached = true;
  __m256i low, high;
  static PlainLine load(const std::byte* at) { return {load_bytes(at), load_bytes(at + 32)}; }
  static void store(std::byte* at, const PlainLine& x) {
    store_bytes(at, x.low);
    store_bytes(at + 32, x.high);
  }
};

struct StreamedLine : PlainLine {
  static constexpr bool kCached = false;
  static void store(std::byte* at, const PlainLine& x) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(at), x.low);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(at + 32), x.high);
  }
};

void copy_part_of_line(std::byte* out, const std::byte* in, std::int64_t bytes) {
  if (bytes > 0) std::memcpy(out, in, static_cast<std::size_t>(bytes));
}

void copy(void* to, const void* from, std::int64_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  const std::int64_t done = copy_lines<PlainLine>(out, in, bytes);
  copy_part_of_line(out + done, in + done, bytes - done);
}

void copy_streaming(void* to, const void* from, std::int64_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  // Only whole lines are streamed; a partial one would go to memory in pieces.
  const auto to_line = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(out) % 64);
  const std::int64_t head = to_line < bytes ? to_line : bytes;
  copy_part_of_line(out, in, head);
  const std::int64_t done = head + copy_lines<StreamedLine>(out + head, in + head, bytes - head);
  copy_part_of_line(out + done, in + done, bytes - done);
}

__m256i all(std::uint32_t value) {
  return _mm256_set1_epi32(static_cast<int>(value));
}

__m256i where(__m256i mask, __m256i yes, __m256i no) {
  return _mm256_blendv_epi8(no, yes, mask);
}
__m256i is_nan(__m256 x) {
  return _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

/// bf16 of each lane in its upper half, as f32_to_bf16; the lower half is left over.
__m256i rounded_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), all(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, all(0x7fff)));
  // Rounding up could carry a NaN's payload into the sign; it is made quiet instead.
  return where(is_nan(x), _mm256_or_si256(bits, all(0x400000)), sum);
}

/// As f32_to_f8e4m3 and f32_to_f8e5m2, one code per lane.
template <DType D>
__m256i encoded_fp8(__m256 x) {
  constexpr unsigned kMantissa = D == DType::f8e4m3 ? 3 : 2;
  constexpr unsigned kBias = D == DType::f8e4m3 ? 7 : 15;
  constexpr std::uint32_t kLargest = D == DType::f8e4m3 ? 0x7e : 0x7b;
  constexpr std::uint32_t kNan = D == DType::f8e4m3 ? 0x7f : 0x7e;
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i magnitude = _mm256_and_si256(bits, all(0x7fffffff));
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), all(0x80));

  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 23 - kMantissa), all(1));
  constexpr std::uint32_t kRebias = (127 - kBias) << 23;
  constexpr std::uint32_t kHalf = (1U << (22 - kMantissa)) - 1;
  const __m256i moved = _mm256_add_epi32(_mm256_sub_epi32(magnitude, all(kRebias - kHalf)), odd);
  const __m256i normal = _mm256_srli_epi32(moved, 23 - kMantissa);

  // Subnormal codes count units of 2^(1 - bias - mantissa): added to a power of two with that last place, the
  // floating-point unit rounds them.
  const __m256i magic = all((127 + 23 + 1 - kBias - kMantissa) << 23);
  const __m256 counted = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(magic));
  const __m256i small = _mm256_sub_epi32(_mm256_castps_si256(counted), magic);
  const __m256i subnormal = _mm256_cmpgt_epi32(all((128 - kBias) << 23), magnitude);

  const __m256i finite = _mm256_min_epu32(where(subnormal, small, normal), all(kLargest));
  return _mm256_or_si256(where(is_nan(x), all(kNan), finite), sign);
}

/// Values of fp8 codes that lie in 16-bit lanes.
template <DType D>
__m256 decoded_fp8(__m128i codes) {
  if constexpr (D == DType::f8e5m2) {
    return _mm256_cvtph_ps(_mm_slli_epi16(codes, 8));  // the upper half of an f16
  } else {
    // As an f16 of the same fields the value is 2^8 too small, subnormals too; 0x7f is the one NaN.
    const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi16(0x7f));
    const __m128i sign = _mm_slli_epi16(_mm_andnot_si128(_mm_set1_epi16(0x7f), codes), 8);
    const __m128i half = _mm_or_si128(_mm_slli_epi16(magnitude, 7), sign);
    const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
    const __m128i marked = _mm_or_si128(half, _mm_and_si128(nan, _mm_set1_epi16(0x7e00)));
    return _mm256_mul_ps(_mm256_cvtph_ps(marked), _mm256_set1_ps(256.0F));
  }
}

bool any_nan_e4m3(__m128i codes) {
  const __m128i magnitude = _mm_and_si128(codes, _mm_set1_epi8(0x7f));
  return _mm_movemask_epi8(_mm_cmpeq_epi8(magnitude, _mm_set1_epi8(0x7f))) != 0;
}

/// Values of the f8e4m3 codes, none of them NaN, in the upper bytes of 16-bit lanes. One arithmetic shift
/// moves the code to its place as an f16 and leaves a second sign bit to clear.
__m256 decoded_upper_e4m3(__m128i codes) {
  const __m128i half = _mm_and_si128(_mm_srai_epi16(codes, 1), _mm_set1_epi16(-0x4080));
  return _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0F));
}

/// Lower 16 bits of each lane; they must lie in [0, 65535].
__m128i low_words(__m256i x) {
  return _mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

struct Avx2 {
  using F = __m256;
  static constexpr std::int64_t kWidth = 8;
  static constexpr int kSumUnits = 2;
  static constexpr bool kStreams = true;

  static F zero() { return _mm256_setzero_ps(); }
  static F broadcast(float x) { return _mm256_set1_ps(x); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  /// max(|x|, best); best where x is NaN.
  static F max_magnitude(F x, F best) {
    return _mm256_max_ps(_mm256_and_ps(x, _mm256_castsi256_ps(all(0x7fffffff))), best);
  }
  static float reduce_max(F x) {
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, x);
    float best = lanes[0];
    for (int i = 1; i < 8; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
  }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static float horizontal_max(F x) {
    const __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 pair = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
  }
  static std::uint32_t equal(F a, F b) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
  }
  static void copy(void* to, const void* from, std::int64_t bytes) { detail::copy(to, from, bytes); }

  template <DType D>
  static F load(const std::byte* at) {
    if constexpr (D == DType::f32) return _mm256_loadu_ps(reinterpret_cast<const float*>(at));
    if constexpr (D == DType::f16) return _mm256_cvtph_ps(load_half(at));
    if constexpr (D == DType::bf16)
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(at)), 16));
    if constexpr (is_fp8(D))
      return decoded_fp8<D>(_mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
  }

  template <DType D, bool Streaming = false>
  static void store(std::byte* at, F x) {
    if constexpr (D == DType::f32 && !Streaming) _mm256_storeu_ps(reinterpret_cast<float*>(at), x);
    if constexpr (D == DType::f32 && Streaming) _mm256_stream_ps(reinterpret_cast<float*>(at), x);
    if constexpr (D == DType::f16) store_half<Streaming>(at, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
    if constexpr (D == DType::bf16)
      store_half<Streaming>(at, low_words(_mm256_srli_epi32(rounded_bf16(x), 16)));
    if constexpr (is_fp8(D)) {
      const __m128i words = low_words(encoded_fp8<D>(x));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(at), _mm_packus_epi16(words, words));
    }
  }

  template <DType D>
  static F load_tail(const std::byte* at, std::int64_t count) {
    if (count >= kWidth) return load<D>(at);
    std::byte padded[kWidth * size_of(D)] = {};
    std::memcpy(padded, at, static_cast<std::size_t>(count * size_of(D)));
    return load<D>(padded);
  }

  template <DType D>
  static void store_tail(std::byte* at, F x, std::int64_t count) {
    if (count >= kWidth) return store<D>(at, x);
    std::byte padded[kWidth * size_of(D)];
    store<D>(padded, x);
    std::memcpy(at, padded, static_cast<std::size_t>(count * size_of(D)));
  }

  template <DType D>
  static void load_pair(const std::byte* at, F& even, F& odd) {
    if constexpr (D == DType::bf16) {
      const __m256i both = load_bytes(at);
      even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
      odd = _mm256_castsi256_ps(_mm256_and_si256(both, all(0xffff0000)));
    } else {
      const __m128i both = load_half(at);
      if (D == DType::f8e4m3 && !any_nan_e4m3(both)) {
        even = decoded_upper_e4m3(_mm_slli_epi16(both, 8));
        odd = decoded_upper_e4m3(both);
        return;
      }
      even = decoded_fp8<D>(_mm_and_si128(both, _mm_set1_epi16(0xff)));
      odd = decoded_fp8<D>(_mm_srli_epi16(both, 8));
    }
  }

  template <DType D, bool Streaming = false>
  static void store_pair(std::byte* at, F even, F odd) {
    static_assert(D == DType::bf16);
    // Both at once, in 16-bit lanes: upper half and one more if the lower half is above 0x8000, or at it and
    // the upper half is odd.
    const __m256i e = _mm256_castps_si256(even);
    const __m256i o = _mm256_castps_si256(odd);
    const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(e, 16), o, 0xaa);
    const __m256i lower = _mm256_blend_epi16(e, _mm256_slli_epi32(o, 16), 0xaa);
    const __m256i sticky = _mm256_or_si256(lower, _mm256_and_si256(upper, _mm256_set1_epi16(1)));
    // Comparison is signed only; flipping the top bit turns "above 0x8000" into "above 0".
    const __m256i flipped = _mm256_xor_si256(sticky, _mm256_set1_epi16(-0x8000));
    const __m256i rounded = _mm256_sub_epi16(upper, _mm256_cmpgt_epi16(flipped, _mm256_setzero_si256()));
    if constexpr (Streaming)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(at), rounded);
    else
      store_bytes(at, rounded);
  }

 private:
  static __m128i load_half(const std::byte* at) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  }
  template <bool Streaming>
  static void store_half(std::byte* at, __m128i x) {
    if constexpr (Streaming)
      _mm_stream_si128(reinterpret_cast<__m128i*>(at), x);
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), x);
  }
};

}  // namespace

const PackKernels kAvx2Kernels = {
    Isa::avx2, copy, copy_streaming, quantise<Avx2>, weighted_sum<Avx2>, scaled_copy<Avx2>, top_k<Avx2>};

}  // namespace shunt::detail

// AVX-512 F, BW, VL and DQ. The BF16 extension is not used: its conversions flush subnormals.
#include <immintrin.h>

#include "top_k.h"
#include "vector_kernels.h"

namespace shunt::detail {
namespace {

__mmask16 first16(std::int64_t count) {
  return static_cast<__mmask16>((1U << count) - 1U);
}
__mmask64 first64(std::int64_t count) {
  return count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1;
}

struct PlainLine {
  static constexpr bool kCached = true;
  static __m512i load(const std::byte* at) { return _mm512_loadu_si512(at); }
  static void store(std::byte* at, __m512i x) { _mm512_storeu_si512(at, x); }
};

struct StreamedLine : PlainLine {
  static constexpr bool kCached = false;
  static void store(std::byte* at, __m512i x) { _mm512_stream_si512(reinterpret_cast<__m512i*>(at), x); }
};

void copy_part_of_line(std::byte* out, const std::byte* in, std::int64_t bytes) {
  const __mmask64 mask = first64(bytes);
  _mm512_mask_storeu_epi8(out, mask, _mm512_maskz_loadu_epi8(mask, in));
}

void copy(void* to, const void* from, std::int64_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  const std::int64_t done = copy_lines<PlainLine>(out, in, bytes);
  if (done < bytes) copy_part_of_line(out + done, in + done, bytes - done);
}

void copy_streaming(void* to, const void* from, std::int64_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  // Only whole lines are streamed; a partial one would go to memory in pieces.
  const auto to_line = static_cast<std::int64_t>(-reinterpret_cast<std::uintptr_t>(out) % 64);
  const std::int64_t head = to_line < bytes ? to_line : bytes;
  if (head > 0) copy_part_of_line(out, in, head);
  const std::int64_t done = head + copy_lines<StreamedLine>(out + head, in + head, bytes - head);
  if (done < bytes) copy_part_of_line(out + done, in + done, bytes - done);
}

__m512i all(std::uint32_t value) {
  return _mm512_set1_epi32(static_cast<int>(value));
}

/// bf16 of each lane in its upper half, as f32_to_bf16; the lower half is left over.
__m512i rounded_bf16(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), all(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, all(0x7fff)));
  // Rounding up could carry a NaN's payload into the sign; it is made quiet instead.
  return _mm512_mask_or_epi32(sum, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), bits, all(0x400000));
}

/// As f32_to_f8e4m3 and f32_to_f8e5m2, one code per lane.
template <DType D>
__m512i encoded_fp8(__m512 x) {
  constexpr unsigned kMantissa = D == DType::f8e4m3 ? 3 : 2;
  constexpr unsigned kBias = D == DType::f8e4m3 ? 7 : 15;
  constexpr std::uint32_t kLargest = D == DType::f8e4m3 ? 0x7e : 0x7b;
  constexpr std::uint32_t kNan = D == DType::f8e4m3 ? 0x7f : 0x7e;
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i magnitude = _mm512_and_si512(bits, all(0x7fffffff));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), all(0x80));

  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 23 - kMantissa), all(1));
  constexpr std::uint32_t kRebias = (127 - kBias) << 23;
  constexpr std::uint32_t kHalf = (1U << (22 - kMantissa)) - 1;
  const __m512i moved = _mm512_add_epi32(_mm512_sub_epi32(magnitude, all(kRebias - kHalf)), odd);
  __m512i code = _mm512_srli_epi32(moved, 23 - kMantissa);

  // Subnormal codes count units of 2^(1 - bias - mantissa): added to a power of two with that last place, the
  // floating-point unit rounds them.
  const __m512i magic = all((127 + 23 + 1 - kBias - kMantissa) << 23);
  const __m512 counted = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(magic));
  const __mmask16 subnormal = _mm512_cmplt_epu32_mask(magnitude, all((128 - kBias) << 23));
  code = _mm512_mask_sub_epi32(code, subnormal, _mm512_castps_si512(counted), magic);

  code = _mm512_min_epu32(code, all(kLargest));
  code = _mm512_mask_mov_epi32(code, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), all(kNan));
  return _mm512_or_si512(code, sign);
}

/// Values of fp8 codes that lie in 16-bit lanes.
template <DType D>
__m512 decoded_fp8(__m256i codes) {
  if constexpr (D == DType::f8e5m2) {
    return _mm512_cvtph_ps(_mm256_slli_epi16(codes, 8));  // the upper half of an f16
  } else {
    // As an f16 of the same fields the value is 2^8 too small, subnormals too; 0x7f is the one NaN.
    const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi16(0x7f));
    const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(_mm256_set1_epi16(0x7f), codes), 8);
    const __m256i half = _mm256_or_si256(_mm256_slli_epi16(magnitude, 7), sign);
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(magnitude, _mm256_set1_epi16(0x7f));
    const __m256i marked = _mm256_mask_mov_epi16(half, nan, _mm256_or_si256(half, _mm256_set1_epi16(0x7e00)));
    return _mm512_mul_ps(_mm512_cvtph_ps(marked), _mm512_set1_ps(256.0F));
  }
}

bool any_nan_e4m3(__m256i codes) {
  const __m256i magnitude = _mm256_and_si256(codes, _mm256_set1_epi8(0x7f));
  return _mm256_cmpeq_epi8_mask(magnitude, _mm256_set1_epi8(0x7f)) != 0;
}

/// Values of the f8e4m3 codes, none of them NaN, in the upper bytes of 16-bit lanes. One arithmetic shift
/// moves the code to its place as an f16 and leaves a second sign bit to clear.
__m512 decoded_upper_e4m3(__m256i codes) {
  const __m256i half = _mm256_and_si256(_mm256_srai_epi16(codes, 1), _mm256_set1_epi16(-0x4080));
  return _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0F));
}

template <DType D>
__m512 widened(__m256i x) {
  if constexpr (D == DType::f16) return _mm512_cvtph_ps(x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

template <DType D>
__m256i narrowed(__m512 x) {
  if constexpr (D == DType::f16) return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded_bf16(x), 16));
}

template <DType D>
__m128i codes(__m512 x) {
  return _mm512_cvtepi32_epi8(encoded_fp8<D>(x));
}

struct Avx512 {
  using F = __m512;
  static constexpr std::int64_t kWidth = 16;
  static constexpr int kSumUnits = 2;
  static constexpr bool kStreams = true;

  static F zero() { return _mm512_setzero_ps(); }
  static F broadcast(float x) { return _mm512_set1_ps(x); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  /// max(|x|, best); best where x is NaN.
  static F max_magnitude(F x, F best) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(x), all(0x7fffffff));
    return _mm512_max_ps(_mm512_castsi512_ps(bits), best);
  }
  static float reduce_max(F x) {
    alignas(64) float lanes[16];
    _mm512_store_ps(lanes, x);
    float best = lanes[0];
    for (int i = 1; i < 16; ++i) best = lanes[i] > best ? lanes[i] : best;
    return best;
  }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static float horizontal_max(F x) { return _mm512_reduce_max_ps(x); }
  static std::uint32_t equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  static void copy(void* to, const void* from, std::int64_t bytes) { detail::copy(to, from, bytes); }

  template <DType D>
  static F load(const std::byte* at) {
    if constexpr (D == DType::f32) return _mm512_loadu_ps(at);
    if constexpr (size_of(D) == 2)
      return widened<D>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    if constexpr (size_of(D) == 1)
      return decoded_fp8<D>(_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
  }

  template <DType D>
  static F load_tail(const std::byte* at, std::int64_t count) {
    const __mmask16 mask = first16(count);
    if constexpr (D == DType::f32) return _mm512_maskz_loadu_ps(mask, at);
    if constexpr (size_of(D) == 2) return widened<D>(_mm256_maskz_loadu_epi16(mask, at));
    if constexpr (size_of(D) == 1)
      return decoded_fp8<D>(_mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(mask, at)));
  }

  template <DType D, bool Streaming = false>
  static void store(std::byte* at, F x) {
    if constexpr (D == DType::f32 && !Streaming) _mm512_storeu_ps(at, x);
    if constexpr (D == DType::f32 && Streaming) _mm512_stream_ps(reinterpret_cast<float*>(at), x);
    if constexpr (size_of(D) == 2 && !Streaming)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), narrowed<D>(x));
    if constexpr (size_of(D) == 2 && Streaming)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(at), narrowed<D>(x));
    if constexpr (size_of(D) == 1) _mm_storeu_si128(reinterpret_cast<__m128i*>(at), codes<D>(x));
  }

  template <DType D>
  static void store_tail(std::byte* at, F x, std::int64_t count) {
    const __mmask16 mask = first16(count);
    if constexpr (D == DType::f32) _mm512_mask_storeu_ps(at, mask, x);
    if constexpr (size_of(D) == 2) _mm256_mask_storeu_epi16(at, mask, narrowed<D>(x));
    if constexpr (size_of(D) == 1) _mm_mask_storeu_epi8(at, mask, codes<D>(x));
  }

  template <DType D>
  static void load_pair(const std::byte* at, F& even, F& odd) {
    if constexpr (D == DType::bf16) {
      const __m512i both = _mm512_loadu_si512(at);
      even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
      odd = _mm512_castsi512_ps(_mm512_and_si512(both, all(0xffff0000)));
    } else {
      const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
      if (D == DType::f8e4m3 && !any_nan_e4m3(both)) {
        even = decoded_upper_e4m3(_mm256_slli_epi16(both, 8));
        odd = decoded_upper_e4m3(both);
        return;
      }
      even = decoded_fp8<D>(_mm256_and_si256(both, _mm256_set1_epi16(0xff)));
      odd = decoded_fp8<D>(_mm256_srli_epi16(both, 8));
    }
  }

  template <DType D, bool Streaming = false>
  static void store_pair(std::byte* at, F even, F odd) {
    static_assert(D == DType::bf16);
    // Both at once, in 16-bit lanes: upper half and one more if the lower half is above 0x8000, or at it and
    // the upper half is odd.
    const __m512i e = _mm512_castps_si512(even);
    const __m512i o = _mm512_castps_si512(odd);
    const __m512i upper = _mm512_mask_mov_epi16(_mm512_srli_epi32(e, 16), 0xaaaaaaaa, o);
    const __m512i lower = _mm512_mask_mov_epi16(_mm512_slli_epi32(o, 16), 0x55555555, e);
    const __m512i one = _mm512_set1_epi16(1);
    const __m512i sticky = _mm512_ternarylogic_epi32(lower, upper, one, 0xf8);  // lower | (upper & 1)
    const __mmask32 up = _mm512_cmpgt_epu16_mask(sticky, _mm512_set1_epi16(-0x8000));
    const __m512i rounded = _mm512_mask_add_epi16(upper, up, upper, one);
    if constexpr (Streaming)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(at), rounded);
    else
      _mm512_storeu_si512(at, rounded);
  }
};

}  // namespace

const PackKernels kAvx512Kernels = {
    Isa::avx512,         copy,         copy_streaming, quantise<Avx512>, weighted_sum<Avx512>,
    scaled_copy<Avx512>, top_k<Avx512>};

}  // namespace shunt::detail

// NEON of AArch64 (Armv8.0: no BF16 or FP16 arithmetic extension is needed).
#include <arm_neon.h>

#include <cstring>

#include "top_k.h"
#include "vector_kernels.h"

namespace shunt::detail {
namespace {

uint8x16_t load_bytes(const std::byte* at) {
  return vld1q_u8(reinterpret_cast<const std::uint8_t*>(at));
}
void store_bytes(std::byte* at, uint8x16_t x) {
  vst1q_u8(reinterpret_cast<std::uint8_t*>(at), x);
}

struct Line {
  static constexpr bool kCached = true;
  static uint8x16x4_t load(const std::byte* at) {
    return {{load_bytes(at), load_bytes(at + 16), load_bytes(at + 32), load_bytes(at + 48)}};
  }
  static void store(std::byte* at, const uint8x16x4_t& x) {
    for (int i = 0; i < 4; ++i) store_bytes(at + 16 * i, x.val[i]);
  }
};

void copy(void* to, const void* from, std::int64_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  const std::int64_t done = copy_lines<Line>(out, in, bytes);
  if (done < bytes) std::memcpy(out + done, in + done, static_cast<std::size_t>(bytes - done));
}

uint32x4_t all(std::uint32_t value) {
  return vdupq_n_u32(value);
}
uint32x4_t is_number(float32x4_t x) {
  return vceqq_f32(x, x);
}

/// bf16 of each lane in its upper half, as f32_to_bf16; the lower half is left over.
uint32x4_t rounded_bf16(float32x4_t x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), all(1));
  const uint32x4_t sum = vaddq_u32(bits, vaddq_u32(odd, all(0x7fff)));
  // Rounding up could carry a NaN's payload into the sign; it is made quiet instead.
  return vbslq_u32(is_number(x), sum, vorrq_u32(bits, all(0x400000)));
}

/// As f32_to_f8e4m3 and f32_to_f8e5m2, one code per lane.
template <DType D>
uint32x4_t encoded_fp8(float32x4_t x) {
  constexpr int kMantissa = D == DType::f8e4m3 ? 3 : 2;
  constexpr std::uint32_t kBias = D == DType::f8e4m3 ? 7 : 15;
  constexpr std::uint32_t kLargest = D == DType::f8e4m3 ? 0x7e : 0x7b;
  constexpr std::uint32_t kNan = D == DType::f8e4m3 ? 0x7f : 0x7e;
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t magnitude = vandq_u32(bits, all(0x7fffffff));
  const uint32x4_t sign = vandq_u32(vshrq_n_u32(bits, 24), all(0x80));

  const uint32x4_t odd = vandq_u32(vshrq_n_u32(magnitude, 23 - kMantissa), all(1));
  constexpr std::uint32_t kRebias = (127 - kBias) << 23;
  constexpr std::uint32_t kHalf = (1U << (22 - kMantissa)) - 1;
  const uint32x4_t moved = vaddq_u32(vsubq_u32(magnitude, all(kRebias - kHalf)), odd);
  const uint32x4_t normal = vshrq_n_u32(moved, 23 - kMantissa);

  // Subnormal codes count units of 2^(1 - bias - mantissa): added to a power of two with that last place, the
  // floating-point unit rounds them.
  const uint32x4_t magic = all((127 + 23 + 1 - kBias - kMantissa) << 23);
  const float32x4_t counted = vaddq_f32(vreinterpretq_f32_u32(magnitude), vreinterpretq_f32_u32(magic));
  const uint32x4_t small = vsubq_u32(vreinterpretq_u32_f32(counted), magic);
  const uint32x4_t subnormal = vcltq_u32(magnitude, all((128 - kBias) << 23));

  const uint32x4_t finite = vminq_u32(vbslq_u32(subnormal, small, normal), all(kLargest));
  return vorrq_u32(vbslq_u32(is_number(x), finite, all(kNan)), sign);
}

float32x4_t widened_f16(uint16x4_t bits) {
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}

/// Values of fp8 codes that lie in 16-bit lanes.
template <DType D>
float32x4_t decoded_fp8(uint16x4_t codes) {
  if constexpr (D == DType::f8e5m2) {
    return widened_f16(vshl_n_u16(codes, 8));  // the upper half of an f16
  } else {
    // As an f16 of the same fields the value is 2^8 too small, subnormals too; 0x7f is the one NaN.
    const uint16x4_t magnitude = vand_u16(codes, vdup_n_u16(0x7f));
    const uint16x4_t sign = vshl_n_u16(vand_u16(codes, vdup_n_u16(0x80)), 8);
    const uint16x4_t half = vorr_u16(vshl_n_u16(magnitude, 7), sign);
    const uint16x4_t nan = vceq_u16(magnitude, vdup_n_u16(0x7f));
    const uint16x4_t marked = vorr_u16(half, vand_u16(nan, vdup_n_u16(0x7e00)));
    return vmulq_n_f32(widened_f16(marked), 256.0F);
  }
}

struct Neon {
  using F = float32x4_t;
  static constexpr std::int64_t kWidth = 4;
  static constexpr int kSumUnits = 8;
  static constexpr bool kStreams = false;

  static F zero() { return vdupq_n_f32(0); }
  static F broadcast(float x) { return vdupq_n_f32(x); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  /// max(|x|, best); best where x is NaN.
  static F max_magnitude(F x, F best) {
    const F magnitude = vabsq_f32(x);
    return vbslq_f32(vcgtq_f32(magnitude, best), magnitude, best);
  }
  static float reduce_max(F x) { return vmaxvq_f32(x); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static float horizontal_max(F x) { return vmaxvq_f32(x); }
  /// A bit for each lane: lane i keeps bit i, and the sum over the lanes is the mask.
  static std::uint32_t equal(F a, F b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vceqq_f32(a, b), bits));
  }
  static void copy(void* to, const void* from, std::int64_t bytes) { detail::copy(to, from, bytes); }

  template <DType D>
  static F load(const std::byte* at) {
    if constexpr (D == DType::f32) return vreinterpretq_f32_u8(load_bytes(at));
    if constexpr (D == DType::f16) return widened_f16(load_half(at));
    if constexpr (D == DType::bf16) return vreinterpretq_f32_u32(vshll_n_u16(load_half(at), 16));
    if constexpr (size_of(D) == 1) {
      std::uint32_t four = 0;
      std::memcpy(&four, at, sizeof four);
      const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(four));
      return decoded_fp8<D>(vget_low_u16(vmovl_u8(bytes)));
    }
  }

  template <DType D>
  static void store(std::byte* at, F x) {
    if constexpr (D == DType::f32) store_bytes(at, vreinterpretq_u8_f32(x));
    if constexpr (D == DType::f16) store_half(at, vreinterpret_u16_f16(vcvt_f16_f32(x)));
    if constexpr (D == DType::bf16) store_half(at, vshrn_n_u32(rounded_bf16(x), 16));
    if constexpr (size_of(D) == 1) {
      const uint16x4_t words = vmovn_u32(encoded_fp8<D>(x));
      const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
      const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
      std::memcpy(at, &four, sizeof four);
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
      const uint32x4_t both = vreinterpretq_u32_u8(load_bytes(at));
      even = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
      odd = vreinterpretq_f32_u32(vandq_u32(both, all(0xffff0000)));
    } else {
      const uint16x4_t both = load_half(at);
      even = decoded_fp8<D>(vand_u16(both, vdup_n_u16(0xff)));
      odd = decoded_fp8<D>(vshr_n_u16(both, 8));
    }
  }

  template <DType D>
  static void store_pair(std::byte* at, F even, F odd) {
    static_assert(D == DType::bf16);
    // Both at once, in 16-bit lanes: upper half and one more if the lower half is above 0x8000, or at it and
    // the upper half is odd.
    const uint32x4_t e = vreinterpretq_u32_f32(even);
    const uint32x4_t o = vreinterpretq_u32_f32(odd);
    const uint16x8_t upper = vreinterpretq_u16_u32(vsriq_n_u32(o, e, 16));
    const uint16x8_t lower = vreinterpretq_u16_u32(vsliq_n_u32(e, o, 16));
    const uint16x8_t sticky = vorrq_u16(lower, vandq_u16(upper, vdupq_n_u16(1)));
    const uint16x8_t up = vcgtq_u16(sticky, vdupq_n_u16(0x8000));
    store_bytes(at, vreinterpretq_u8_u16(vsubq_u16(upper, up)));
  }

 private:
  static uint16x4_t load_half(const std::byte* at) {
    return vreinterpret_u16_u8(vld1_u8(reinterpret_cast<const std::uint8_t*>(at)));
  }
  static void store_half(std::byte* at, uint16x4_t x) {
    vst1_u8(reinterpret_cast<std::uint8_t*>(at), vreinterpret_u8_u16(x));
  }
};

}  // namespace

// AArch64 has no streaming stores of its own kind: stnp is a hint that current cores ignore.
const PackKernels kNeonKernels = {Isa::neon,         copy,       copy, quantise<Neon>, weighted_sum<Neon>,
                                  scaled_copy<Neon>, top_k<Neon>};

}  // namespace shunt::detail

#pragma once

#include <cstdint>

#include <shunt/device/qualifiers.h>
#include <shunt/device/word16.h>

/// Conversions of kernels: the bits of <shunt/core/dtype.h> (NaN may have another payload), by the instructions of the
/// GPU that has them, else in integers. On a CPU always the portable form, which the tests compare with core's.
namespace shunt::device {

SHUNT_DEVICE std::uint32_t bits_of(float value) {
  return __builtin_bit_cast(std::uint32_t, value);
}
SHUNT_DEVICE float float_of(std::uint32_t bits) {
  return __builtin_bit_cast(float, bits);
}

/// One IEEE operation each, rounded to nearest even, subnormals kept; nothing is contracted.
SHUNT_DEVICE float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}
SHUNT_DEVICE float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// Code of `value` in a format of `mantissa` bits, exponent bias `bias` and the largest code `largest`, above which
/// everything (infinity too) becomes `largest`; NaN becomes `nan`. Sign in the bit above the largest exponent.
SHUNT_DEVICE std::uint32_t encode_small_float(float value, std::uint32_t mantissa, std::uint32_t bias,
                                              std::uint32_t largest, std::uint32_t nan,
                                              std::uint32_t sign_shift) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t sign = bits >> 31 << sign_shift;
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  if (magnitude > 0x7f800000U) return sign | nan;
  std::uint32_t code = 0;
  if (magnitude >= (128 - bias) << 23) {
    const std::uint32_t cut = 23 - mantissa;
    const std::uint32_t rounded = magnitude + (1U << (cut - 1)) - 1 + ((magnitude >> cut) & 1U);
    code = (rounded >> cut) - ((127 - bias) << mantissa);
  } else {
    // Subnormal there. Adding the power of two whose last bit is the format's smallest step makes the addition round.
    const std::uint32_t step = (151 - bias - mantissa) << 23;
    code = bits_of(float_of(magnitude) + float_of(step)) - step;
  }
  return sign | (code < largest ? code : largest);
}

SHUNT_DEVICE std::uint16_t f32_to_bf16(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  std::uint16_t bits = 0;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16 & 0x8000U) | 0x7fc0U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
#endif
}

SHUNT_DEVICE std::uint16_t f32_to_f16(float value) {
#if defined(__CUDA_ARCH__)
  std::uint16_t bits = 0;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
#else
  return static_cast<std::uint16_t>(encode_small_float(value, 10, 15, 0x7c00, 0x7e00, 15));
#endif
}

/// `low` in the lower byte.
SHUNT_DEVICE std::uint16_t f32_to_f8e4m3_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  std::uint16_t bits = 0;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(high), "f"(low));
  return bits;
#else
  return static_cast<std::uint16_t>(encode_small_float(low, 3, 7, 0x7e, 0x7f, 7) |
                                    encode_small_float(high, 3, 7, 0x7e, 0x7f, 7) << 8);
#endif
}

SHUNT_DEVICE std::uint16_t f32_to_f8e5m2_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  std::uint16_t bits = 0;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(high), "f"(low));
  return bits;
#else
  return static_cast<std::uint16_t>(encode_small_float(low, 2, 15, 0x7b, 0x7e, 7) |
                                    encode_small_float(high, 2, 15, 0x7b, 0x7e, 7) << 8);
#endif
}

SHUNT_DEVICE float bf16_to_f32(std::uint16_t bits) {
  return float_of(static_cast<std::uint32_t>(bits) << 16);
}

SHUNT_DEVICE float f16_to_f32(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
  float value = 0;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  const std::uint32_t sign = (bits & 0x8000U) << 16;
  const std::uint32_t magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00) return float_of(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + (112U << 23)));
  const float value = static_cast<float>(magnitude) * 0x1p-24F;  // exact
  return float_of(sign | bits_of(value));
#endif
}

/// Smallest power of two that is >= value (finite, positive), as its biased exponent; 254 above 2^127.
SHUNT_DEVICE std::uint8_t f32_to_ue8m0(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t exponent = bits >> 23;
  const std::uint32_t fraction = bits & 0x7fffffU;
  if (exponent == 0) return fraction > 0x00400000U ? 1 : 0;
  const std::uint32_t up = exponent + (fraction != 0 ? 1U : 0U);
  return static_cast<std::uint8_t>(up < 254 ? up : 254);
}
SHUNT_DEVICE float ue8m0_to_f32(std::uint8_t power) {
  return power == 0     ? float_of(0x00400000U)
         : power == 255 ? float_of(0x7fc00000U)
                        : float_of(static_cast<std::uint32_t>(power) << 23);
}

/// @name Element formats of rows
/// kBytes of one element; kPerWord elements in 16 bytes; load and store of one element at its address; unpack and pack
/// of 16 bytes, lowest address first.
/// @{
struct F32 {
  static constexpr std::int32_t kBytes = 4;
  static constexpr std::int32_t kPerWord = 4;
  static SHUNT_DEVICE float load(const void* at) { return *static_cast<const float*>(at); }
  static SHUNT_DEVICE void store(void* at, float value) { *static_cast<float*>(at) = value; }
  static SHUNT_DEVICE void unpack(const Word16& from, float* to) {
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < 4; ++i) to[i] = float_of(from.word[i]);
  }
  static SHUNT_DEVICE Word16 pack(const float* from) {
    return {{bits_of(from[0]), bits_of(from[1]), bits_of(from[2]), bits_of(from[3])}};
  }
};

/// Two bytes, converted by To (from the bits) and From (to the bits).
template <float (*To)(std::uint16_t), std::uint16_t (*From)(float)>
struct Half {
  static constexpr std::int32_t kBytes = 2;
  static constexpr std::int32_t kPerWord = 8;
  static SHUNT_DEVICE float load(const void* at) { return To(*static_cast<const std::uint16_t*>(at)); }
  static SHUNT_DEVICE void store(void* at, float value) { *static_cast<std::uint16_t*>(at) = From(value); }
  static SHUNT_DEVICE void unpack(const Word16& from, float* to) {
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < 4; ++i) {
      to[2 * i] = To(static_cast<std::uint16_t>(from.word[i] & 0xffffU));
      to[2 * i + 1] = To(static_cast<std::uint16_t>(from.word[i] >> 16));
    }
  }
  static SHUNT_DEVICE Word16 pack(const float* from) {
    Word16 to;
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < 4; ++i)
      to.word[i] = From(from[2 * i]) | static_cast<std::uint32_t>(From(from[2 * i + 1])) << 16;
    return to;
  }
};
using F16 = Half<f16_to_f32, f32_to_f16>;
using Bf16 = Half<bf16_to_f32, f32_to_bf16>;

/// One byte, only written; Pair converts two values. kLargest is the largest finite value.
template <std::uint16_t (*Pair)(float, float), std::int32_t Largest>
struct F8 {
  static constexpr std::int32_t kBytes = 1;
  static constexpr std::int32_t kPerWord = 16;
  static constexpr float kLargest = static_cast<float>(Largest);
  static SHUNT_DEVICE void store(void* at, float value) {
    *static_cast<std::uint8_t*>(at) = static_cast<std::uint8_t>(Pair(value, 0.0F) & 0xffU);
  }
  static SHUNT_DEVICE Word16 pack(const float* from) {
    Word16 to;
    SHUNT_UNROLL
    for (std::int32_t i = 0; i < 4; ++i)
      to.word[i] = Pair(from[4 * i], from[4 * i + 1]) |
                   static_cast<std::uint32_t>(Pair(from[4 * i + 2], from[4 * i + 3])) << 16;
    return to;
  }
};
using F8e4m3 = F8<f32_to_f8e4m3_pair, 448>;
using F8e5m2 = F8<f32_to_f8e5m2_pair, 57344>;
/// @}

}  // namespace shunt::device

#include <shunt/core/dtype.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt {
namespace {

constexpr std::uint32_t kSign32 = 0x80000000U;
constexpr std::uint32_t kInfinity32 = 0x7f800000U;

/// Shifts right, rounding to nearest even; 1 <= shift <= 31.
constexpr std::uint32_t shift_rounded(std::uint32_t value, std::uint32_t shift) {
  const std::uint32_t half = 1U << (shift - 1);
  const std::uint32_t odd = (value >> shift) & 1U;
  return (value + half - 1 + odd) >> shift;
}

/// Code of a finite non-negative float in a format of `mantissa` bits and exponent bias `bias`, as if its
/// exponent had no upper end: codes past the largest finite one tell the caller that the value overflowed.
constexpr std::uint32_t encode_magnitude(std::uint32_t magnitude, std::uint32_t mantissa,
                                         std::uint32_t bias) {
  const std::uint32_t exponent = magnitude >> 23;
  if (exponent + bias > 127) return shift_rounded(magnitude - ((127 - bias) << 23), 23 - mantissa);
  // Subnormal there: count units of 2^(1 - bias - mantissa). A float subnormal lies far below half a unit.
  const std::uint32_t shift = 151 - bias - mantissa - exponent;
  if (exponent == 0 || shift > 25) return 0;
  return shift_rounded((magnitude & 0x7fffffU) | 0x800000U, shift);
}

/// Value of a finite code.
float decode_magnitude(std::uint32_t code, std::uint32_t mantissa, std::uint32_t bias) {
  const std::uint32_t exponent = code >> mantissa;
  const std::uint32_t fraction = code & ((1U << mantissa) - 1);
  if (exponent != 0) return std::bit_cast<float>((code << (23 - mantissa)) + ((127 - bias) << 23));
  // Exact: the product of a small integer and a power of two that is a normal float.
  return static_cast<float>(fraction) * std::bit_cast<float>((128 - bias - mantissa) << 23);
}

float with_sign(float magnitude, bool negative) {
  return negative ? -magnitude : magnitude;
}

constexpr std::array kDTypes = {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::f8e5m2};

}  // namespace

double max_finite(DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return std::numeric_limits<float>::max();
    case DType::f16:
      return 65504.0;
    case DType::bf16:
      return bf16_to_f32(0x7f7f);
    case DType::f8e4m3:
      return 448.0;
    case DType::f8e5m2:
      return 57344.0;
  }
  return 0;
}

const char* dtype_name(DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::f8e4m3:
      return "float8_e4m3fn";
    case DType::f8e5m2:
      return "float8_e5m2";
  }
  return "unknown";
}

DType parse_dtype(std::string_view name) {
  std::string allowed;
  for (const DType dtype : kDTypes) {
    if (name == dtype_name(dtype)) return dtype;
    if (!allowed.empty()) allowed += ", ";
    allowed += dtype_name(dtype);
  }
  throw Error(Errc::invalid_argument, fmt::format("unknown dtype \"{}\"; allowed: {}", name, allowed));
}

float f16_to_f32(std::uint16_t bits) noexcept {
  const std::uint32_t magnitude = bits & 0x7fffU;
  if (magnitude < 0x7c00) return with_sign(decode_magnitude(magnitude, 10, 15), bits >> 15);
  return std::bit_cast<float>((bits & 0x8000U) << 16 | kInfinity32 | (magnitude & 0x3ffU) << 13);
}

float bf16_to_f32(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

float f8e4m3_to_f32(std::uint8_t bits) noexcept {
  const std::uint32_t magnitude = bits & 0x7fU;
  if (magnitude == 0x7f) return std::bit_cast<float>((bits & 0x80U) << 24 | 0x7fc00000U);
  return with_sign(decode_magnitude(magnitude, 3, 7), bits >> 7);
}

float f8e5m2_to_f32(std::uint8_t bits) noexcept {
  return f16_to_f32(static_cast<std::uint16_t>(bits << 8));
}

std::uint16_t f32_to_f16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits & kSign32) >> 16;
  const std::uint32_t magnitude = bits & ~kSign32;
  if (magnitude > kInfinity32) return static_cast<std::uint16_t>(sign | 0x7e00U);
  if (magnitude == kInfinity32) return static_cast<std::uint16_t>(sign | 0x7c00U);
  return static_cast<std::uint16_t>(sign | std::min(encode_magnitude(magnitude, 10, 15), 0x7c00U));
}

std::uint16_t f32_to_bf16(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & ~kSign32) > kInfinity32) return static_cast<std::uint16_t>((bits & kSign32) >> 16 | 0x7fc0U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

std::uint8_t f32_to_f8e4m3(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits & kSign32) >> 24;
  const std::uint32_t magnitude = bits & ~kSign32;
  if (magnitude > kInfinity32) return static_cast<std::uint8_t>(sign | 0x7fU);
  return static_cast<std::uint8_t>(sign | std::min(encode_magnitude(magnitude, 3, 7), 0x7eU));
}

std::uint8_t f32_to_f8e5m2(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits & kSign32) >> 24;
  const std::uint32_t magnitude = bits & ~kSign32;
  if (magnitude > kInfinity32) return static_cast<std::uint8_t>(sign | 0x7eU);
  return static_cast<std::uint8_t>(sign | std::min(encode_magnitude(magnitude, 2, 15), 0x7bU));
}

float ue8m0_to_f32(std::uint8_t bits) noexcept {
  if (bits == 255) return std::numeric_limits<float>::quiet_NaN();
  if (bits == 0) return std::bit_cast<float>(0x00400000U);  // 2^-127, a float subnormal
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 23);
}

std::uint8_t f32_to_ue8m0(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t exponent = bits >> 23;
  const std::uint32_t fraction = bits & 0x7fffffU;
  if (exponent == 0) return fraction > 0x00400000U ? 1 : 0;
  return static_cast<std::uint8_t>(std::min(exponent + (fraction != 0 ? 1U : 0U), 254U));
}

float load_element(DType dtype, const void* data, std::int64_t index) noexcept {
  const auto* at = static_cast<const std::byte*>(data) + index * dtype_bytes(dtype);
  std::uint32_t word = 0;
  std::uint16_t half = 0;
  std::uint8_t byte = 0;
  switch (dtype) {
    case DType::f32:
      std::memcpy(&word, at, sizeof word);
      return std::bit_cast<float>(word);
    case DType::f16:
      std::memcpy(&half, at, sizeof half);
      return f16_to_f32(half);
    case DType::bf16:
      std::memcpy(&half, at, sizeof half);
      return bf16_to_f32(half);
    case DType::f8e4m3:
      std::memcpy(&byte, at, sizeof byte);
      return f8e4m3_to_f32(byte);
    case DType::f8e5m2:
      std::memcpy(&byte, at, sizeof byte);
      return f8e5m2_to_f32(byte);
  }
  return 0;
}

void store_element(DType dtype, void* data, std::int64_t index, float value) noexcept {
  auto* at = static_cast<std::byte*>(data) + index * dtype_bytes(dtype);
  const auto put = [at](auto bits) { std::memcpy(at, &bits, sizeof bits); };
  switch (dtype) {
    case DType::f32:
      put(value);
      break;
    case DType::f16:
      put(f32_to_f16(value));
      break;
    case DType::bf16:
      put(f32_to_bf16(value));
      break;
    case DType::f8e4m3:
      put(f32_to_f8e4m3(value));
      break;
    case DType::f8e5m2:
      put(f32_to_f8e5m2(value));
      break;
  }
}

}  // namespace shunt

#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace shunt {

/// Element type of a row.
enum class DType : std::uint8_t { f32, f16, bf16, f8e4m3, f8e5m2 };

/// How the scale of a block of fp8 elements is stored.
enum class ScaleType : std::uint8_t {
  none,   ///< Elements are stored as they are.
  f32,    ///< One float per block.
  ue8m0,  ///< One byte per block: a power of two, 2^(byte - 127); 255 is NaN.
};

/// Bytes of one element.
[[nodiscard]] constexpr std::int64_t dtype_bytes(DType dtype) noexcept {
  switch (dtype) {
    case DType::f32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::f8e4m3:
    case DType::f8e5m2:
      return 1;
  }
  return 0;
}

/// Bytes of one block scale; 0 for `none`.
[[nodiscard]] constexpr std::int64_t scale_bytes(ScaleType type) noexcept {
  return type == ScaleType::f32 ? 4 : type == ScaleType::ue8m0 ? 1 : 0;
}

[[nodiscard]] constexpr bool is_fp8(DType dtype) noexcept {
  return dtype == DType::f8e4m3 || dtype == DType::f8e5m2;
}

/// Largest finite magnitude: 448 for f8e4m3 (no infinity), 57344 for f8e5m2.
[[nodiscard]] double max_finite(DType dtype) noexcept;

/// "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2": the names of PyTorch.
[[nodiscard]] const char* dtype_name(DType dtype) noexcept;

/// Inverse of dtype_name.
/// Errors: Errc::invalid_argument lists the allowed names.
[[nodiscard]] DType parse_dtype(std::string_view name);

/// @name Scalar conversion, the specification of every vector kernel
/// Bits to value is exact. Value to bits rounds once, to nearest even; f16, bf16 and f32 overflow to infinity,
/// fp8 saturates to max_finite (also from infinity); NaN stays NaN (f8e4m3 0x7f, f8e5m2 0x7e, f16 0x7e00, bf16
/// 0x7fc0, each with the sign kept); subnormals are kept everywhere.
/// @{
[[nodiscard]] float f16_to_f32(std::uint16_t bits) noexcept;
[[nodiscard]] float bf16_to_f32(std::uint16_t bits) noexcept;
[[nodiscard]] float f8e4m3_to_f32(std::uint8_t bits) noexcept;
[[nodiscard]] float f8e5m2_to_f32(std::uint8_t bits) noexcept;
[[nodiscard]] std::uint16_t f32_to_f16(float value) noexcept;
[[nodiscard]] std::uint16_t f32_to_bf16(float value) noexcept;
[[nodiscard]] std::uint8_t f32_to_f8e4m3(float value) noexcept;
[[nodiscard]] std::uint8_t f32_to_f8e5m2(float value) noexcept;
[[nodiscard]] float ue8m0_to_f32(std::uint8_t bits) noexcept;
/// Smallest power of two that is >= value, as its biased exponent; value must be finite and positive.
/// Above 2^127 there is none: 254, the largest.
[[nodiscard]] std::uint8_t f32_to_ue8m0(float value) noexcept;
/// Element `index` of an array of `dtype`.
[[nodiscard]] float load_element(DType dtype, const void* data, std::int64_t index) noexcept;
void store_element(DType dtype, void* data, std::int64_t index, float value) noexcept;
/// @}

}  // namespace shunt

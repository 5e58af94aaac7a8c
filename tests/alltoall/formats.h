#pragma once

#include <cstddef>
#include <cstdint>

#include <shunt/core/dtype.h>

/// Number formats of the tests' reference, written from their definitions (sign, exponent, fraction, bias) in
/// double arithmetic. Shares no code with the library's conversions, which work on bits.
namespace oracle {

/// A binary floating point format.
struct Format {
  int fraction_bits;  ///< Stored bits of the significand
  int exponent_bits;
  int bias;
  bool has_infinity;  ///< Else the top exponent holds numbers, and only all ones is NaN
  bool saturates;     ///< Numbers beyond the largest become the largest instead of infinity
};
[[nodiscard]] Format format_of(shunt::DType dtype);

/// Value of one element; exact.
[[nodiscard]] float decode(shunt::DType dtype, const std::byte* at);
/// Rounds `value` once, to nearest even, and stores it.
void encode(shunt::DType dtype, double value, std::byte* at);

/// 2^(byte - 127); 255 is NaN.
[[nodiscard]] double decode_ue8m0(std::uint8_t byte);
/// Byte of the smallest power of two >= value > 0.
[[nodiscard]] std::uint8_t encode_ue8m0(double value);

[[nodiscard]] std::int64_t bytes_of(shunt::DType dtype);
[[nodiscard]] std::int64_t bytes_of(shunt::ScaleType type);
/// Scale number `index` of a row's scales; 1 for ScaleType::none.
[[nodiscard]] double decode_scale(shunt::ScaleType type, const std::byte* scales, std::int64_t index);

}  // namespace oracle

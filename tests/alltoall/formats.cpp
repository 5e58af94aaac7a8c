#include <alltoall/formats.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace oracle {
namespace {

double value_of_pattern(const Format& format, std::uint32_t pattern) {
  const std::uint32_t fraction_count = 1U << format.fraction_bits;
  const std::uint32_t exponent_count = 1U << format.exponent_bits;
  const std::uint32_t fraction = pattern % fraction_count;
  const std::uint32_t exponent = pattern / fraction_count % exponent_count;
  const double sign = pattern / fraction_count / exponent_count != 0 ? -1.0 : 1.0;
  const bool top = exponent == exponent_count - 1;
  if (top && format.has_infinity) {
    if (fraction == 0) return sign * std::numeric_limits<double>::infinity();
    return std::numeric_limits<double>::quiet_NaN();
  }
  if (top && fraction == fraction_count - 1) return std::numeric_limits<double>::quiet_NaN();
  const double step = fraction / static_cast<double>(fraction_count);
  if (exponent == 0) return sign * std::ldexp(step, 1 - format.bias);
  return sign * std::ldexp(1.0 + step, static_cast<int>(exponent) - format.bias);
}

std::vector<float> table_of(shunt::DType dtype) {
  const Format format = format_of(dtype);
  std::vector<float> table(std::size_t{1} << (1 + format.exponent_bits + format.fraction_bits));
  for (std::size_t pattern = 0; pattern < table.size(); ++pattern)
    table[pattern] = static_cast<float>(value_of_pattern(format, static_cast<std::uint32_t>(pattern)));
  return table;
}

/// Pattern without sign of a positive number, zero or infinity.
std::uint32_t pattern_of(const Format& format, double magnitude) {
  const std::uint32_t fraction_count = 1U << format.fraction_bits;
  const std::uint32_t top = (1U << format.exponent_bits) - 1;
  const std::uint32_t infinity = top * fraction_count;
  const std::uint32_t largest = format.has_infinity ? infinity - 1 : infinity + fraction_count - 2;
  const std::uint32_t beyond = format.saturates ? largest : infinity;
  if (magnitude == 0) return 0;
  if (std::isinf(magnitude)) return beyond;
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent-1), 2^exponent)
  const int smallest_normal = 1 - format.bias;
  const int power = std::max(exponent - 1, smallest_normal);
  // Number of smallest steps at this power: an integer after rounding. Subnormals count from 0, normals from
  // fraction_count, and a carry into the next power is the next pattern, because patterns are ordered as
  // numbers.
  const double steps = std::rint(std::ldexp(magnitude, format.fraction_bits - power));
  const auto pattern = static_cast<std::uint64_t>(steps) +
                       static_cast<std::uint64_t>(power - smallest_normal) * fraction_count;
  return pattern > largest ? beyond : static_cast<std::uint32_t>(pattern);
}

}  // namespace

Format format_of(shunt::DType dtype) {
  switch (dtype) {
    case shunt::DType::f32:
      return {23, 8, 127, true, false};
    case shunt::DType::f16:
      return {10, 5, 15, true, false};
    case shunt::DType::bf16:
      return {7, 8, 127, true, false};
    case shunt::DType::f8e4m3:
      return {3, 4, 7, false, true};
    case shunt::DType::f8e5m2:
      return {2, 5, 15, true, true};
  }
  return {};
}

std::int64_t bytes_of(shunt::DType dtype) {
  const Format format = format_of(dtype);
  return (1 + format.exponent_bits + format.fraction_bits) / 8;
}

std::int64_t bytes_of(shunt::ScaleType type) {
  if (type == shunt::ScaleType::none) return 0;
  return type == shunt::ScaleType::f32 ? 4 : 1;
}

float decode(shunt::DType dtype, const std::byte* at) {
  static const std::vector<float> f16 = table_of(shunt::DType::f16);
  static const std::vector<float> bf16 = table_of(shunt::DType::bf16);
  static const std::vector<float> e4m3 = table_of(shunt::DType::f8e4m3);
  static const std::vector<float> e5m2 = table_of(shunt::DType::f8e5m2);
  if (dtype == shunt::DType::f32) {
    float value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  const auto low = std::to_integer<std::size_t>(at[0]);
  if (dtype == shunt::DType::f8e4m3) return e4m3[low];
  if (dtype == shunt::DType::f8e5m2) return e5m2[low];
  const std::size_t pattern = low + 256 * std::to_integer<std::size_t>(at[1]);
  return dtype == shunt::DType::f16 ? f16[pattern] : bf16[pattern];
}

void encode(shunt::DType dtype, double value, std::byte* at) {
  if (dtype == shunt::DType::f32) {
    const auto rounded = static_cast<float>(value);
    std::memcpy(at, &rounded, sizeof rounded);
    return;
  }
  const Format format = format_of(dtype);
  const std::uint32_t fraction_count = 1U << format.fraction_bits;
  const std::uint32_t top = (1U << format.exponent_bits) - 1;
  // Some NaN; the contract compares NaN as NaN, not by bits.
  std::uint32_t pattern = top * fraction_count + fraction_count - 1;
  if (!std::isnan(value)) pattern = pattern_of(format, std::fabs(value));
  if (std::signbit(value)) pattern += (top + 1) * fraction_count;
  for (std::int64_t i = 0; i < bytes_of(dtype); ++i, pattern /= 256)
    at[i] = static_cast<std::byte>(pattern % 256);
}

double decode_ue8m0(std::uint8_t byte) {
  return byte == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, byte - 127);
}

std::uint8_t encode_ue8m0(double value) {
  int exponent = 0;
  const bool power_of_two = std::frexp(value, &exponent) == 0.5;
  return static_cast<std::uint8_t>(std::clamp(exponent - (power_of_two ? 1 : 0) + 127, 0, 254));
}

double decode_scale(shunt::ScaleType type, const std::byte* scales, std::int64_t index) {
  if (type == shunt::ScaleType::none) return 1.0;
  if (type == shunt::ScaleType::ue8m0) return decode_ue8m0(std::to_integer<std::uint8_t>(scales[index]));
  return decode(shunt::DType::f32, scales + 4 * index);
}

}  // namespace oracle

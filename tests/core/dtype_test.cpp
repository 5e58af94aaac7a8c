#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include <shunt/core/dtype.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>

namespace shunt {
namespace {

constexpr std::array kDTypes = {DType::f32, DType::f16, DType::bf16, DType::f8e4m3, DType::f8e5m2};

/// A small floating-point format, described only by its parameters.
struct Format {
  const char* name;
  int exponent_bits, mantissa_bits, bias;
  bool has_infinity;  // else every code but the last one of the largest exponent is finite, as in e4m3fn
  bool saturates;
  std::function<double(unsigned)> decode;
  std::function<unsigned(float)> encode;

  [[nodiscard]] unsigned last_finite() const {
    const unsigned all = (1U << (exponent_bits + mantissa_bits)) - 1;
    return has_infinity ? all - (1U << mantissa_bits) : all - 1;
  }
  [[nodiscard]] unsigned sign_bit() const { return 1U << (exponent_bits + mantissa_bits); }
  /// Value of a magnitude code from the textbook formula.
  [[nodiscard]] double value(unsigned code) const {
    const int exponent = static_cast<int>(code >> mantissa_bits);
    const double fraction = std::ldexp(code & ((1U << mantissa_bits) - 1), -mantissa_bits);
    return exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  }
  /// Nearest code of a non-negative number, found by bisection over the table of values.
  [[nodiscard]] unsigned nearest(double x) const {
    const unsigned last = last_finite();
    // The value that the next code would have, did the exponents go on: half way to it is where overflow
    // starts.
    const double beyond = 2 * value(last) - value(last - 1);
    if (x > value(last)) {
      const double middle = (value(last) + beyond) / 2;
      const bool up = x > middle || (x == middle && last % 2 == 1);
      return up && !saturates ? last + 1 : last;
    }
    unsigned low = 0, high = last;
    while (high - low > 1) {
      const unsigned middle = (low + high) / 2;
      (value(middle) <= x ? low : high) = middle;
    }
    const double below = x - value(low);
    const double above = value(high) - x;
    if (below != above) return below < above ? low : high;
    return low % 2 == 0 ? low : high;
  }
};

std::vector<Format> formats() {
  return {
      {"f16", 5, 10, 15, true, false, [](unsigned c) { return f16_to_f32(static_cast<std::uint16_t>(c)); },
       f32_to_f16},
      {"bf16", 8, 7, 127, true, false, [](unsigned c) { return bf16_to_f32(static_cast<std::uint16_t>(c)); },
       f32_to_bf16},
      {"f8e4m3", 4, 3, 7, false, true, [](unsigned c) { return f8e4m3_to_f32(static_cast<std::uint8_t>(c)); },
       f32_to_f8e4m3},
      {"f8e5m2", 5, 2, 15, true, true, [](unsigned c) { return f8e5m2_to_f32(static_cast<std::uint8_t>(c)); },
       f32_to_f8e5m2},
  };
}

TEST(DTypeTest, DecodesEveryCodeToItsFormulaValue) {
  for (const Format& format : formats()) {
    for (unsigned code = 0; code <= format.last_finite(); ++code) {
      ASSERT_EQ(format.decode(code), format.value(code)) << format.name << " code " << code;
      ASSERT_EQ(format.decode(code | format.sign_bit()), -format.value(code))
          << format.name << " code " << code;
      ASSERT_TRUE(std::signbit(format.decode(code | format.sign_bit())));
    }
    for (unsigned code = format.last_finite() + 1; code < format.sign_bit(); ++code) {
      const bool infinity = format.has_infinity && code == format.last_finite() + 1;
      ASSERT_EQ(std::isinf(format.decode(code)), infinity) << format.name << " code " << code;
      ASSERT_EQ(std::isnan(format.decode(code)), !infinity) << format.name << " code " << code;
      ASSERT_TRUE(std::signbit(format.decode(code | format.sign_bit())));
    }
  }
}

TEST(DTypeTest, RoundsToTheNearestCodeAroundEveryMidpoint) {
  for (const Format& format : formats()) {
    for (unsigned code = 0; code <= format.last_finite(); ++code) {
      const double next = code == format.last_finite() ? 2 * format.value(code) - format.value(code - 1)
                                                       : format.value(code + 1);
      const auto middle = static_cast<float>((format.value(code) + next) / 2);
      const auto exact = static_cast<float>(format.value(code));
      for (const float centre : {exact, middle}) {
        const float around[] = {std::nextafterf(centre, 0.0F), centre,
                                std::nextafterf(centre, std::numeric_limits<float>::infinity())};
        for (const float x : around) {
          if (!std::isfinite(x)) continue;
          ASSERT_EQ(format.encode(x), format.nearest(x)) << format.name << " " << x;
          ASSERT_EQ(format.encode(-x), format.nearest(x) | format.sign_bit()) << format.name << " " << -x;
        }
      }
    }
  }
}

TEST(DTypeTest, RoundsRandomBitPatternsToTheNearestCode) {
  Random random(17);
  for (const Format& format : formats()) {
    for (int i = 0; i < 200000; ++i) {
      float x = 0;
      const std::uint32_t bits = random.next_u32();
      static_assert(sizeof x == sizeof bits);
      std::memcpy(&x, &bits, sizeof x);
      if (!std::isfinite(x)) continue;
      const unsigned expected = format.nearest(std::fabs(x)) | (std::signbit(x) ? format.sign_bit() : 0);
      ASSERT_EQ(format.encode(x), expected) << format.name << " " << x;
    }
  }
}

TEST(DTypeTest, KeepsTheSignOfNanAndSaturatesOnlyFp8) {
  const float nan = std::copysign(std::numeric_limits<float>::quiet_NaN(), 1.0F);
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(f32_to_f8e4m3(nan), 0x7f);
  EXPECT_EQ(f32_to_f8e4m3(std::copysign(nan, -1.0F)), 0xff);
  EXPECT_EQ(f32_to_f8e5m2(nan), 0x7e);
  EXPECT_EQ(f32_to_f8e5m2(std::copysign(nan, -1.0F)), 0xfe);
  EXPECT_EQ(f32_to_f16(nan), 0x7e00);
  EXPECT_EQ(f32_to_f16(std::copysign(nan, -1.0F)), 0xfe00);
  EXPECT_EQ(f32_to_bf16(nan), 0x7fc0);
  EXPECT_EQ(f32_to_bf16(std::copysign(nan, -1.0F)), 0xffc0);
  EXPECT_EQ(f32_to_f8e4m3(infinity), 0x7e);
  EXPECT_EQ(f32_to_f8e5m2(-infinity), 0xfb);
  EXPECT_EQ(f32_to_f16(infinity), 0x7c00);
  EXPECT_EQ(f32_to_f16(65520.0F), 0x7c00);
  EXPECT_EQ(f32_to_f16(65519.996F), 0x7bff);
  EXPECT_EQ(f32_to_bf16(-infinity), 0xff80);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
}

TEST(DTypeTest, RaisesScalesToTheNextPowerOfTwo) {
  EXPECT_EQ(f32_to_ue8m0(1.0F), 127);
  EXPECT_EQ(f32_to_ue8m0(std::nextafterf(1.0F, 2.0F)), 128);
  EXPECT_EQ(f32_to_ue8m0(0.75F), 127);
  EXPECT_EQ(f32_to_ue8m0(0x1p-127F), 0);
  EXPECT_EQ(f32_to_ue8m0(0x1p-149F), 0);
  EXPECT_EQ(f32_to_ue8m0(0x1.8p-127F), 1);
  EXPECT_EQ(f32_to_ue8m0(std::numeric_limits<float>::max()), 254);
  for (unsigned code = 0; code < 255; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    EXPECT_EQ(ue8m0_to_f32(byte), std::ldexp(1.0, static_cast<int>(code) - 127));
    EXPECT_EQ(f32_to_ue8m0(ue8m0_to_f32(byte)), byte);
  }
  EXPECT_TRUE(std::isnan(ue8m0_to_f32(255)));
}

TEST(DTypeTest, LoadsWhatItStoredAtUnalignedPlaces) {
  alignas(8) std::array<unsigned char, 64> memory = {};
  for (const DType dtype : kDTypes) {
    memory.fill(0xa5);
    store_element(dtype, memory.data() + 1, 3, -1.5F);
    EXPECT_EQ(load_element(dtype, memory.data() + 1, 3), -1.5F) << dtype_name(dtype);
    const auto begin = static_cast<std::size_t>(1 + 3 * dtype_bytes(dtype));
    EXPECT_EQ(memory[begin - 1], 0xa5);
    EXPECT_EQ(memory[begin + static_cast<std::size_t>(dtype_bytes(dtype))], 0xa5);
  }
}

TEST(DTypeTest, ParsesTheNamesItPrints) {
  for (const DType dtype : kDTypes) EXPECT_EQ(parse_dtype(dtype_name(dtype)), dtype);
  EXPECT_STREQ(dtype_name(DType::f8e4m3), "float8_e4m3fn");
}

TEST(DTypeTest, ListsTheAllowedNamesWhenOneIsUnknown) {
  try {
    static_cast<void>(parse_dtype("bf16"));
    FAIL() << "bf16 was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_STREQ(error.what(),
                 "unknown dtype \"bf16\"; allowed: float32, float16, bfloat16, float8_e4m3fn, float8_e5m2");
  }
}

TEST(DTypeTest, KnowsSizesAndLargestValues) {
  EXPECT_EQ(max_finite(DType::f8e4m3), 448);
  EXPECT_EQ(max_finite(DType::f8e5m2), 57344);
  EXPECT_EQ(max_finite(DType::f16), 65504);
  EXPECT_EQ(max_finite(DType::bf16), 0x1.fep127);
  EXPECT_EQ(max_finite(DType::f32), std::numeric_limits<float>::max());
  EXPECT_EQ(dtype_bytes(DType::f32), 4);
  EXPECT_EQ(dtype_bytes(DType::bf16), 2);
  EXPECT_EQ(dtype_bytes(DType::f8e5m2), 1);
  EXPECT_EQ(scale_bytes(ScaleType::none), 0);
  EXPECT_EQ(scale_bytes(ScaleType::f32), 4);
  EXPECT_EQ(scale_bytes(ScaleType::ue8m0), 1);
}

}  // namespace
}  // namespace shunt

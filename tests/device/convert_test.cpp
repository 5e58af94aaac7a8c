// The portable conversions of kernels against those of core, which are the specification.
#include <shunt/device/convert.h>

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include <shunt/core/dtype.h>
#include <shunt/core/random.h>

namespace shunt::test {
namespace {

float float_of(std::uint32_t bits) {
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// Every upper half of a float with lower halves at and beside the ties, then anything.
std::vector<float> floats() {
  std::vector<float> values;
  for (const std::uint32_t low :
       {0x0000U, 0x0001U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU, 0x1000U, 0x0fffU, 0x1001U})
    for (std::uint32_t high = 0; high < 65536; ++high) values.push_back(float_of(high << 16 | low));
  Random random(7);
  for (int i = 0; i < 1'000'000; ++i) values.push_back(float_of(random.next_u32()));
  return values;
}

TEST(ConvertTest, RoundsEveryKindOfFloatAsCoreDoes) {
  for (const float value : floats()) {
    ASSERT_EQ(device::f32_to_bf16(value), f32_to_bf16(value)) << value;
    ASSERT_EQ(device::f32_to_f16(value), f32_to_f16(value)) << value;
    ASSERT_EQ(device::f32_to_f8e4m3_pair(value, 1.0F), f32_to_f8e4m3(value) | f32_to_f8e4m3(1.0F) << 8)
        << value;
    ASSERT_EQ(device::f32_to_f8e5m2_pair(-2.0F, value), f32_to_f8e5m2(-2.0F) | f32_to_f8e5m2(value) << 8)
        << value;
  }
}

TEST(ConvertTest, RoundsThePowerOfAScaleAsCoreDoes) {
  for (const float value : floats()) {
    if (!(value > 0) || !std::isfinite(value)) continue;
    ASSERT_EQ(device::f32_to_ue8m0(value), f32_to_ue8m0(value)) << value;
  }
  for (unsigned power = 0; power < 255; ++power) {
    const auto byte = static_cast<std::uint8_t>(power);
    ASSERT_EQ(device::ue8m0_to_f32(byte), ue8m0_to_f32(byte));
  }
  EXPECT_TRUE(std::isnan(device::ue8m0_to_f32(255)));
}

TEST(ConvertTest, WidensEveryHalf) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float f16 = device::f16_to_f32(half);
    const float expected = f16_to_f32(half);
    ASSERT_EQ(device::bits_of(f16), device::bits_of(expected)) << bits;
    ASSERT_EQ(device::bits_of(device::bf16_to_f32(half)), bits << 16);
  }
}

template <class Format>
void check_words(DType dtype) {
  Random random(11);
  for (int round = 0; round < 2000; ++round) {
    float values[Format::kPerWord];
    unsigned char expected[16] = {};
    for (std::int32_t i = 0; i < Format::kPerWord; ++i) {
      values[i] = static_cast<float>(random.normal() * std::exp2(static_cast<double>(random.below(40)) - 20));
      store_element(dtype, expected, i, values[i]);
    }
    const device::Word16 word = Format::pack(values);
    ASSERT_EQ(std::memcmp(&word, expected, sizeof word), 0) << dtype_name(dtype);
    alignas(4) unsigned char one[4] = {};
    Format::store(one, values[0]);
    ASSERT_EQ(std::memcmp(one, expected, Format::kBytes), 0);
    if constexpr (Format::kBytes > 1) {
      float back[Format::kPerWord];
      Format::unpack(word, back);
      for (std::int32_t i = 0; i < Format::kPerWord; ++i)
        ASSERT_EQ(back[i], load_element(dtype, expected, i));
      ASSERT_EQ(Format::load(one), back[0]);
    }
  }
}

TEST(ConvertTest, PacksSixteenBytesInTheOrderOfMemory) {
  check_words<device::F32>(DType::f32);
  check_words<device::F16>(DType::f16);
  check_words<device::Bf16>(DType::bf16);
  check_words<device::F8e4m3>(DType::f8e4m3);
  check_words<device::F8e5m2>(DType::f8e5m2);
}

}  // namespace
}  // namespace shunt::test

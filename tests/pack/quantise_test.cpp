#include <limits>

#include "pack_fixture.h"

namespace shunt::test {
namespace {

class QuantiseTest : public PackTest {
 protected:
  /// Quantises `from` with this table and with the scalar one.
  void check(const GuardedBuffer& from, DType from_dtype, const Quantisation& how, std::size_t offset) {
    const std::int64_t hidden = static_cast<std::int64_t>(from.size()) / dtype_bytes(from_dtype);
    const std::int64_t scales = how.num_scales(hidden) * scale_bytes(how.scale);
    GuardedBuffer actual(hidden, offset), expected(hidden);
    GuardedBuffer actual_scales(scales, offset / 3), expected_scales(scales);
    const auto target = [&](GuardedBuffer& elements, GuardedBuffer& at) {
      return QuantisedRow{elements.data(), how.scale == ScaleType::none ? nullptr : at.data()};
    };
    kernels().quantise(from.data(), from_dtype, hidden, how, target(actual, actual_scales));
    reference().quantise(from.data(), from_dtype, hidden, how, target(expected, expected_scales));
    ASSERT_EQ(first_difference(how.dtype, actual, expected), -1)
        << dtype_name(from_dtype) << " to " << dtype_name(how.dtype) << ", H " << hidden << ", block "
        << how.block;
    ASSERT_TRUE(actual_scales == expected_scales) << "H " << hidden << ", block " << how.block;
    ASSERT_TRUE(actual.guards_intact() && actual_scales.guards_intact());
  }
};

constexpr std::array kFp8 = {DType::f8e4m3, DType::f8e5m2};

TEST_P(QuantiseTest, GivesTheScalarBitsForEveryShapeAndDType) {
  Random random(201);
  constexpr std::array kBlocks = {1, 3, 8, 16, 32, 100, 128, 129, 4096};
  for (int round = 0; round < 1500; ++round) {
    const DType from_dtype = kWideDTypes.at(random.below(3));
    const Quantisation how{kFp8.at(random.below(2)), kScaleTypes.at(random.below(3)),
                           kBlocks.at(random.below(kBlocks.size()))};
    GuardedBuffer from(random_length(random) * dtype_bytes(from_dtype),
                       static_cast<std::size_t>(random.below(64)));
    fill_elements(random, from_dtype, from, round % 3 == 0);
    check(from, from_dtype, how, static_cast<std::size_t>(random.below(64)));
    if (HasFatalFailure()) return;
  }
}

TEST_P(QuantiseTest, ConvertsEveryHalfPrecisionInput) {
  for (const DType from_dtype : {DType::f16, DType::bf16}) {
    GuardedBuffer from(65536 * 2);
    for (std::uint32_t bits = 0; bits < 65536; ++bits) std::memcpy(from.data() + 2 * bits, &bits, 2);
    for (const DType dtype : kFp8)
      for (const ScaleType scale : kScaleTypes) check(from, from_dtype, {dtype, scale, 64}, 0);
  }
}

TEST_P(QuantiseTest, RoundsFloatsAsTheScalarOneAroundEveryBoundary) {
  Random random(202);
  for (const DType dtype : kFp8) {
    std::vector<float> values;
    for (unsigned code = 0; code < 256; ++code) {
      float pair[2] = {};
      for (unsigned i = 0; i < 2; ++i) {
        const auto byte = static_cast<std::uint8_t>(code + i);
        pair[i] = dtype == DType::f8e4m3 ? f8e4m3_to_f32(byte) : f8e5m2_to_f32(byte);
      }
      for (const float centre : {pair[0], (pair[0] + pair[1]) / 2}) {
        float low = centre, high = centre;
        values.push_back(centre);
        for (int step = 0; step < 40; ++step) {
          low = std::nextafter(low, -std::numeric_limits<float>::infinity());
          high = std::nextafter(high, std::numeric_limits<float>::infinity());
          values.push_back(low);
          values.push_back(high);
        }
      }
    }
    for (int i = 0; i < 200000; ++i) {
      const std::uint32_t bits = random.next_u32();
      float value = 0;
      std::memcpy(&value, &bits, sizeof value);
      values.push_back(value);
    }
    GuardedBuffer from(static_cast<std::int64_t>(values.size() * sizeof(float)));
    std::memcpy(from.data(), values.data(), from.size());
    check(from, DType::f32, {dtype, ScaleType::none, 128}, 1);
    check(from, DType::f32, {dtype, ScaleType::f32, 16}, 1);
    if (HasFatalFailure()) return;
  }
}

TEST_P(QuantiseTest, TakesTheScaleFromTheLargestMagnitude) {
  const float row[] = {1, -896, 3, 0.5F, 1e-9F, 0};
  std::uint8_t elements[6] = {};
  float scales[2] = {};
  kernels().quantise(row, DType::f32, 6, {DType::f8e4m3, ScaleType::f32, 4}, {elements, scales});
  EXPECT_EQ(scales[0], 2.0F);
  EXPECT_EQ(scales[1], 1e-4F / 448.0F);  // the floor under amax
  EXPECT_EQ(f8e4m3_to_f32(elements[0]), 0.5F);
  EXPECT_EQ(f8e4m3_to_f32(elements[1]), -448.0F);
  EXPECT_EQ(f8e4m3_to_f32(elements[2]), 1.5F);
  EXPECT_EQ(f8e4m3_to_f32(elements[3]), 0.25F);
  EXPECT_EQ(elements[5], 0);

  std::uint8_t powers[2] = {};
  const float larger[] = {900, 1, 1, 1};
  kernels().quantise(larger, DType::f32, 4, {DType::f8e4m3, ScaleType::ue8m0, 4}, {elements, powers});
  EXPECT_EQ(powers[0], 127 + 2);  // 900 / 448 rounds up to 4
  EXPECT_EQ(f8e4m3_to_f32(elements[0]), 224.0F);
}

TEST_P(QuantiseTest, LeavesNanOutOfTheScale) {
  float row[33] = {};
  for (float& x : row) x = std::numeric_limits<float>::quiet_NaN();
  row[17] = -448;
  std::uint8_t elements[33] = {};
  float scale = 0;
  kernels().quantise(row, DType::f32, 33, {DType::f8e4m3, ScaleType::f32, 33}, {elements, &scale});
  EXPECT_EQ(scale, 1.0F);
  EXPECT_EQ(f8e4m3_to_f32(elements[17]), -448.0F);
  EXPECT_TRUE(std::isnan(f8e4m3_to_f32(elements[0])));
}

SHUNT_FOR_EVERY_ISA(QuantiseTest);

}  // namespace
}  // namespace shunt::test

#include "pack_fixture.h"

namespace shunt::test {
namespace {

class ScaledCopyTest : public PackTest {
 protected:
  void check(const GuardedBuffer& from, const GuardedBuffer& scales, ScaledCopy copy, std::size_t offset) {
    GuardedBuffer actual(copy.hidden * dtype_bytes(copy.to_dtype), offset);
    GuardedBuffer expected(copy.hidden * dtype_bytes(copy.to_dtype));
    copy.from = from.data();
    copy.from_scales = copy.from_scale == ScaleType::none ? nullptr : scales.data();
    copy.to = expected.data();
    reference().scaled_copy(copy);
    copy.to = actual.data();
    kernels().scaled_copy(copy);
    ASSERT_EQ(first_difference(copy.to_dtype, actual, expected), -1)
        << dtype_name(copy.from_dtype) << " to " << dtype_name(copy.to_dtype) << ", H " << copy.hidden
        << ", block " << copy.block << ", factor " << copy.factor;
    ASSERT_TRUE(actual.guards_intact());
  }
};

TEST_P(ScaledCopyTest, GivesTheScalarBitsForEveryShapeAndDType) {
  Random random(301);
  constexpr std::array kBlocks = {1, 3, 16, 32, 100, 128, 4096};
  for (int round = 0; round < 2000; ++round) {
    ScaledCopy copy;
    copy.hidden = random_length(random);
    copy.from_dtype = kAllDTypes.at(random.below(5));
    copy.to_dtype = kWideDTypes.at(random.below(3));
    copy.from_scale = kScaleTypes.at(random.below(3));
    copy.block = kBlocks.at(random.below(kBlocks.size()));
    copy.factor = random.below(3) == 0 ? 1.0F : static_cast<float>(random.normal());
    GuardedBuffer from(copy.hidden * dtype_bytes(copy.from_dtype),
                       static_cast<std::size_t>(random.below(64)));
    fill_elements(random, copy.from_dtype, from, round % 3 == 0);
    const std::int64_t num_scales = (copy.hidden + copy.block - 1) / copy.block;
    GuardedBuffer scales(num_scales * 4, static_cast<std::size_t>(random.below(64)));
    for (std::int64_t b = 0; b < num_scales; ++b) {
      if (copy.from_scale == ScaleType::f32)
        store_element(DType::f32, scales.data(), b, static_cast<float>(random.normal()));
      else
        scales.data()[b] = static_cast<unsigned char>(random.below(256));
    }
    check(from, scales, copy, static_cast<std::size_t>(random.below(64)));
    if (HasFatalFailure()) return;
  }
}

TEST_P(ScaledCopyTest, DecodesEveryFp8Code) {
  GuardedBuffer from(256 * 3, 1);
  for (std::size_t i = 0; i < from.size(); ++i) from.data()[i] = static_cast<unsigned char>(i);
  for (const DType from_dtype : {DType::f8e4m3, DType::f8e5m2}) {
    GuardedBuffer to(256 * 3 * 4);
    kernels().scaled_copy({.from = from.data(),
                           .to = to.data(),
                           .hidden = 256 * 3,
                           .from_dtype = from_dtype,
                           .to_dtype = DType::f32});
    for (std::int64_t i = 0; i < 256 * 3; ++i) {
      const float expected = load_element(from_dtype, from.data(), i);
      const float actual = load_element(DType::f32, to.data(), i);
      if (std::isnan(expected))
        ASSERT_TRUE(std::isnan(actual)) << i;
      else
        ASSERT_EQ(std::memcmp(&expected, &actual, 4), 0) << i << ": " << actual << " for " << expected;
    }
    for (const DType to_dtype : kWideDTypes) {
      ScaledCopy copy;
      copy.hidden = 256 * 3;
      copy.from_dtype = from_dtype;
      copy.to_dtype = to_dtype;
      check(from, from, copy, 2);
    }
  }
}

TEST_P(ScaledCopyTest, ConvertsEveryHalfPrecisionInput) {
  GuardedBuffer from(65536 * 2);
  for (std::uint32_t bits = 0; bits < 65536; ++bits) std::memcpy(from.data() + 2 * bits, &bits, 2);
  for (const DType from_dtype : {DType::f16, DType::bf16}) {
    for (const DType to_dtype : kWideDTypes) {
      for (const float factor : {1.0F, 0x1p-20F, 3.0F}) {
        ScaledCopy copy;
        copy.hidden = 65536;
        copy.from_dtype = from_dtype;
        copy.to_dtype = to_dtype;
        copy.factor = factor;
        check(from, from, copy, 0);
      }
    }
  }
}

TEST_P(ScaledCopyTest, MultipliesByScaleAndThenByFactor) {
  // In this order the product overflows; with scale * factor first it would be 448.
  const std::uint8_t element = 0x7e;  // 448
  const float scale = 0x1p127F;
  float out = 0;
  kernels().scaled_copy({.from = &element,
                         .from_scales = &scale,
                         .to = &out,
                         .hidden = 1,
                         .from_dtype = DType::f8e4m3,
                         .from_scale = ScaleType::f32,
                         .to_dtype = DType::f32,
                         .factor = 0x1p-127F});
  EXPECT_TRUE(std::isinf(out));
}

TEST_P(ScaledCopyTest, UndoesQuantiseWithinHalfAStep) {
  Random random(302);
  constexpr std::int64_t kHidden = 300;
  std::vector<float> row(kHidden), back(kHidden);
  for (float& x : row) x = static_cast<float>(random.normal());
  for (const ScaleType type : {ScaleType::f32, ScaleType::ue8m0}) {
    std::vector<std::uint8_t> elements(kHidden), scales(3 * 4);
    kernels().quantise(row.data(), DType::f32, kHidden, {DType::f8e4m3, type, 128},
                       {elements.data(), scales.data()});
    kernels().scaled_copy({.from = elements.data(),
                           .from_scales = scales.data(),
                           .to = back.data(),
                           .hidden = kHidden,
                           .from_dtype = DType::f8e4m3,
                           .from_scale = type,
                           .block = 128,
                           .to_dtype = DType::f32});
    for (std::size_t h = 0; h < row.size(); ++h)
      ASSERT_NEAR(back[h], row[h], std::fabs(row[h]) / 16 + 6.0 / 448 * 0x1p-9) << h;
  }
}

TEST_P(ScaledCopyTest, StaysNanWhenScaleOrFactorIsNanWithAFullPayload) {
  constexpr std::int64_t kHidden = 150;
  GuardedBuffer from(kHidden * 2);
  for (std::int64_t h = 0; h < kHidden; ++h) store_element(DType::bf16, from.data(), h, 1.0F);
  for (const std::uint32_t bits : {0x7fffffffU, 0xffffffffU, 0x7f800001U}) {
    float nan = 0;
    std::memcpy(&nan, &bits, sizeof nan);
    for (const bool scale_is_nan : {false, true}) {
      const float scale = scale_is_nan ? nan : 2.0F;
      GuardedBuffer to(kHidden * 2);
      kernels().scaled_copy({.from = from.data(),
                             .from_scales = &scale,
                             .to = to.data(),
                             .hidden = kHidden,
                             .from_scale = ScaleType::f32,
                             .block = kHidden,
                             .factor = scale_is_nan ? 3.0F : nan});
      for (std::int64_t h = 0; h < kHidden; ++h)
        ASSERT_TRUE(std::isnan(load_element(DType::bf16, to.data(), h))) << bits << ", column " << h;
    }
  }
}

SHUNT_FOR_EVERY_ISA(ScaledCopyTest);

}  // namespace
}  // namespace shunt::test

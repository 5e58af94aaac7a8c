// The reference itself, against values written down by hand: a reference that agreed with a wrong library
// would prove nothing.
#include <alltoall/oracle.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>

#include <alltoall/formats.h>

namespace oracle {
namespace {

using shunt::DType;

float decoded(DType dtype, std::uint16_t bits) {
  const std::array<std::byte, 2> raw = {static_cast<std::byte>(bits & 0xff),
                                        static_cast<std::byte>(bits >> 8)};
  return decode(dtype, raw.data());
}

std::uint16_t encoded(DType dtype, double value) {
  std::array<std::byte, 4> raw{};
  encode(dtype, value, raw.data());
  return static_cast<std::uint16_t>(std::to_integer<unsigned>(raw[0]) | std::to_integer<unsigned>(raw[1])
                                                                            << 8);
}

TEST(OracleFormatsTest, DecodesKnownPatterns) {
  EXPECT_EQ(decoded(DType::f16, 0x3c00), 1.0F);
  EXPECT_EQ(decoded(DType::f16, 0xc000), -2.0F);
  EXPECT_EQ(decoded(DType::f16, 0x7bff), 65504.0F);
  EXPECT_EQ(decoded(DType::f16, 0x0001), 0x1p-24F);
  EXPECT_EQ(decoded(DType::f16, 0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(decoded(DType::f16, 0x7e00)));
  EXPECT_EQ(decoded(DType::bf16, 0x3f80), 1.0F);
  EXPECT_EQ(decoded(DType::bf16, 0x4049), 3.140625F);
  EXPECT_EQ(decoded(DType::bf16, 0x0001), 0x1p-133F);
  EXPECT_EQ(decoded(DType::f8e4m3, 0x7e), 448.0F);
  EXPECT_EQ(decoded(DType::f8e4m3, 0x38), 1.0F);
  EXPECT_EQ(decoded(DType::f8e4m3, 0x01), 0x1p-9F);
  EXPECT_TRUE(std::isnan(decoded(DType::f8e4m3, 0xff)));
  EXPECT_EQ(decoded(DType::f8e5m2, 0x7b), 57344.0F);
  EXPECT_EQ(decoded(DType::f8e5m2, 0x3c), 1.0F);
  EXPECT_EQ(decoded(DType::f8e5m2, 0x01), 0x1p-16F);
  EXPECT_EQ(decoded(DType::f8e5m2, 0xfc), -std::numeric_limits<float>::infinity());
}

TEST(OracleFormatsTest, EncodesToNearestEvenAndSaturates) {
  EXPECT_EQ(encoded(DType::bf16, 1.0 + 0x1p-8), 0x3f80);            // tie, to even below
  EXPECT_EQ(encoded(DType::bf16, 1.0 + 3 * 0x1p-8), 0x3f82);        // tie, to even above
  EXPECT_EQ(encoded(DType::bf16, 1.0 + 0x1p-8 + 0x1p-20), 0x3f81);  // just above the tie
  EXPECT_EQ(encoded(DType::bf16, 3.4e38), 0x7f80);
  EXPECT_EQ(encoded(DType::f16, 65519.0), 0x7bff);
  EXPECT_EQ(encoded(DType::f16, 65520.0), 0x7c00);
  EXPECT_EQ(encoded(DType::f16, 0x1p-25), 0x0000);
  EXPECT_EQ(encoded(DType::f16, 0x1.8p-25), 0x0001);
  EXPECT_EQ(encoded(DType::f16, -0.0), 0x8000);
  EXPECT_EQ(encoded(DType::f16, 0x1.ffcp-15),
            0x03ff + 1);  // a subnormal that rounds up to the smallest normal
  EXPECT_EQ(encoded(DType::f8e4m3, 464.0), 0x7e);
  EXPECT_EQ(encoded(DType::f8e4m3, -1e9), 0xfe);
  EXPECT_EQ(encoded(DType::f8e4m3, 1.0625), 0x38);
  EXPECT_EQ(encoded(DType::f8e4m3, 0x1p-10), 0x00);
  EXPECT_EQ(encoded(DType::f8e5m2, std::numeric_limits<double>::infinity()), 0x7b);
  EXPECT_EQ(encoded(DType::f8e5m2, 1.125), 0x3c);
}

TEST(OracleFormatsTest, EveryPatternComesBack) {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f8e4m3, DType::f8e5m2}) {
    const Format format = format_of(dtype);
    for (unsigned pattern = 0; pattern < (bytes_of(dtype) == 1 ? 0x100U : 0x10000U); ++pattern) {
      const float value = decoded(dtype, static_cast<std::uint16_t>(pattern));
      if (std::isnan(value) || (std::isinf(value) && format.saturates)) continue;
      ASSERT_EQ(encoded(dtype, value), pattern) << dtype_name(dtype);
    }
  }
}

TEST(OracleFormatsTest, RoundsUe8m0Up) {
  EXPECT_EQ(encode_ue8m0(1.0), 127);
  EXPECT_EQ(encode_ue8m0(1.0000001), 128);
  EXPECT_EQ(encode_ue8m0(0.75), 127);
  EXPECT_EQ(decode_ue8m0(130), 8.0);
}

/// 2 ranks, 3 experts (ranks own 0, 1 and 2), 2 groups of 1 and 2 tokens.
Step small_step() {
  Step step;
  step.num_ranks = 2;
  step.config.max_tokens = 2;
  step.config.num_experts = 3;
  step.config.top_k = 2;
  step.config.hidden = 1;
  step.config.alignment = 2;
  step.config.token_dtype = step.config.payload = DType::f32;
  step.config.expert_dtype = step.config.out_dtype = DType::f32;
  const auto tokens = [](std::vector<float> values) {
    Bytes bytes(values.size() * sizeof(float));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  };
  step.groups.push_back({1, tokens({10}), {}, {1, 0}, {0.5F, 0.25F}});
  step.groups.push_back({2, tokens({20, 30}), {}, {2, 1, -1, 1}, {1.0F, 2.0F, 99.0F, 4.0F}});
  return step;
}

float number(const Bytes& bytes, std::size_t index) {
  return decode(DType::f32, bytes.data() + index * sizeof(float));
}

TEST(OracleTest, SortsRowsByExpertGroupToken) {
  Reference reference(small_step());
  EXPECT_EQ(reference.arrivals(), (std::vector<std::int64_t>{4, 1}));
  const auto first = reference.received(0);
  EXPECT_EQ(first.starts, (std::vector<std::int64_t>{0, 2, 6}));
  EXPECT_EQ(first.counts, (std::vector<std::int64_t>{1, 3}));
  EXPECT_EQ(first.counts_by_group, (std::vector<std::int64_t>{1, 0, 1, 2}));
  EXPECT_EQ(first.expert_of_row, (std::vector<std::int64_t>{0, -1, 1, 1, 1, -1}));
  EXPECT_EQ(number(first.rows, 0), 10.0F);
  EXPECT_EQ(number(first.rows, 2), 10.0F);
  EXPECT_EQ(number(first.rows, 3), 20.0F);
  EXPECT_EQ(number(first.rows, 4), 30.0F);
  const auto second = reference.received(1);
  EXPECT_EQ(second.starts, (std::vector<std::int64_t>{0, 2}));
  EXPECT_EQ(number(second.rows, 0), 20.0F);
}

TEST(OracleTest, PadsEveryExpertToTheWorstCase) {
  Step step = small_step();
  step.config.layout = shunt::RowLayout::padded;
  step.config.alignment = 3;
  const auto rows = Reference(step).received(0);
  EXPECT_EQ(rows.starts, (std::vector<std::int64_t>{0, 6, 12}));  // 2 groups x 2 tokens, to a multiple of 3
}

TEST(OracleTest, SumsInKOrder) {
  Reference reference(small_step());
  // Experts multiply by (37 e mod 11 + 1) / 8, with the sign of column + expert: 1/8, -5/8, 9/8.
  const auto first = reference.combined(0, nullptr);
  EXPECT_EQ(number(first.bits, 0), 0.5F * -6.25F + 0.25F * 1.25F);
  EXPECT_EQ(first.sum[0], 0.5 * -6.25 + 0.25 * 1.25);
  const auto second = reference.combined(1, nullptr);
  EXPECT_EQ(number(second.bits, 0), 22.5F + 2.0F * -12.5F);
  EXPECT_EQ(number(second.bits, 1), 4.0F * -18.75F);
  const std::array<float, 2> old = {1.0F, 2.0F};
  const auto added = reference.combined(1, reinterpret_cast<const std::byte*>(old.data()));
  EXPECT_EQ(number(added.bits, 1), 2.0F - 75.0F);
}

TEST(OracleTest, QuantisesByBlockPeak) {
  Step step = small_step();
  step.config.num_experts = 1;
  step.config.top_k = 1;
  step.num_ranks = 1;
  step.config.hidden = 3;
  step.config.scale_block = 2;
  step.config.payload = DType::f8e4m3;
  step.config.scale = shunt::ScaleType::ue8m0;
  step.config.alignment = 1;
  const std::array<float, 3> token = {-448.5F, 224.0F, 0.0F};
  step.groups = {{1, Bytes(sizeof token), {}, {0}, {1.0F}}};
  std::memcpy(step.groups[0].tokens.data(), token.data(), sizeof token);
  const auto rows = Reference(step).received(0);
  // 448.5 / 448 rounds up to 2; 1e-4 / 448 = 2.2e-7 rounds up to 2^-22.
  EXPECT_EQ(rows.scales, (Bytes{std::byte{128}, std::byte{105}}));
  EXPECT_EQ(rows.rows, (Bytes{std::byte{0xf6}, std::byte{0x6e}, std::byte{0}}));  // -224, 112, 0
}

}  // namespace
}  // namespace oracle

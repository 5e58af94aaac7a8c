#include <limits>

#include "pack_fixture.h"

namespace shunt::test {
namespace {

class WeightedSumTest : public PackTest {};

struct Rows {
  std::vector<GuardedBuffer> buffers;
  std::vector<const void*> pointers;
  std::vector<float> weights;
};

Rows random_rows(Random& random, DType dtype, std::int64_t hidden, std::uint64_t count, bool any_bits) {
  Rows rows;
  for (std::uint64_t k = 0; k < count; ++k) {
    rows.buffers.emplace_back(hidden * dtype_bytes(dtype), static_cast<std::size_t>(random.below(64)));
    fill_elements(random, dtype, rows.buffers.back(), any_bits);
    rows.weights.push_back(static_cast<float>(random.normal()));
  }
  for (std::uint64_t k = 0; k < count; ++k) {
    const bool skipped = random.below(5) == 0;
    rows.pointers.push_back(skipped ? nullptr : rows.buffers[k].data());
    if (skipped) rows.weights[k] = std::numeric_limits<float>::quiet_NaN();  // must not be read
  }
  return rows;
}

TEST_P(WeightedSumTest, GivesTheScalarBitsForEveryShapeAndDType) {
  Random random(101);
  for (int round = 0; round < 1500; ++round) {
    const DType row_dtype = kWideDTypes.at(random.below(3));
    const DType out_dtype = kWideDTypes.at(random.below(3));
    const std::int64_t hidden = random_length(random);
    const std::uint64_t count = random.below(18);
    const bool accumulate = random.below(2) == 0;
    const Rows rows = random_rows(random, row_dtype, hidden, count, round % 3 == 0);

    GuardedBuffer actual(hidden * dtype_bytes(out_dtype), static_cast<std::size_t>(random.below(64)));
    fill_elements(random, out_dtype, actual, false);
    GuardedBuffer expected(hidden * dtype_bytes(out_dtype));
    std::copy(actual.data(), actual.data() + actual.size(), expected.data());

    WeightedSum sum{.rows = rows.pointers.data(),
                    .weights = rows.weights.data(),
                    .num_rows = static_cast<std::int64_t>(count),
                    .hidden = hidden,
                    .row_dtype = row_dtype,
                    .out_dtype = out_dtype,
                    .out = expected.data(),
                    .accumulate = accumulate};
    reference().weighted_sum(sum);
    sum.out = actual.data();
    kernels().weighted_sum(sum);
    ASSERT_EQ(first_difference(out_dtype, actual, expected), -1)
        << "round " << round << ": " << dtype_name(row_dtype) << " to " << dtype_name(out_dtype) << ", H "
        << hidden << ", K " << count << (accumulate ? ", accumulating" : "");
    ASSERT_TRUE(actual.guards_intact()) << "round " << round;
  }
}

TEST_P(WeightedSumTest, StreamingChangesNoBit) {
  Random random(103);
  for (int round = 0; round < 400; ++round) {
    const DType dtype = kWideDTypes.at(random.below(3));
    const std::int64_t hidden = random_length(random);
    const std::uint64_t count = random.below(11);
    const Rows rows = random_rows(random, dtype, hidden, count, round % 3 == 0);
    Rows later = random_rows(random, dtype, hidden, count, false);
    GuardedBuffer expected(hidden * dtype_bytes(dtype));
    // Mostly at a line of the cache, where it is streamed.
    GuardedBuffer actual(hidden * dtype_bytes(dtype),
                         round % 4 == 0 ? static_cast<std::size_t>(random.below(64)) : 0);
    fill_elements(random, dtype, actual, false);
    WeightedSum sum{.rows = rows.pointers.data(),
                    .weights = rows.weights.data(),
                    .num_rows = static_cast<std::int64_t>(count),
                    .hidden = hidden,
                    .row_dtype = dtype,
                    .out_dtype = dtype,
                    .out = expected.data()};
    reference().weighted_sum(sum);
    sum.out = actual.data();
    sum.streaming = true;
    sum.next_rows = round % 2 == 0 ? later.pointers.data() : nullptr;
    kernels().weighted_sum(sum);
    store_fence();
    ASSERT_EQ(first_difference(dtype, actual, expected), -1)
        << "round " << round << ": " << dtype_name(dtype) << ", H " << hidden << ", K " << count;
    ASSERT_TRUE(actual.guards_intact()) << "round " << round;
  }
}

TEST_P(WeightedSumTest, StaysWithinRoundingOfDoublePrecision) {
  Random random(102);
  constexpr std::int64_t kHidden = 777;
  constexpr std::uint64_t kRows = 8;
  for (const DType dtype : kWideDTypes) {
    Rows rows = random_rows(random, dtype, kHidden, kRows, false);
    GuardedBuffer out(kHidden * 4);
    kernels().weighted_sum({.rows = rows.pointers.data(),
                            .weights = rows.weights.data(),
                            .num_rows = kRows,
                            .hidden = kHidden,
                            .row_dtype = dtype,
                            .out_dtype = DType::f32,
                            .out = out.data()});
    for (std::int64_t h = 0; h < kHidden; ++h) {
      double expected = 0, magnitude = 0;
      for (std::uint64_t k = 0; k < kRows; ++k) {
        if (rows.pointers[k] == nullptr) continue;
        const double term = static_cast<double>(rows.weights[k]) * load_element(dtype, rows.pointers[k], h);
        expected += term;
        magnitude += std::fabs(term);
      }
      ASSERT_NEAR(load_element(DType::f32, out.data(), h), expected, magnitude * kRows * 0x1p-24);
    }
  }
}

TEST_P(WeightedSumTest, WritesZeroOrTheOldValueWhenThereIsNothingToAdd) {
  constexpr std::int64_t kHidden = 83;
  const void* const skipped[] = {nullptr, nullptr};
  for (const std::int64_t num_rows : {0, 2}) {
    for (const DType dtype : kWideDTypes) {
      GuardedBuffer out(kHidden * dtype_bytes(dtype), 3);
      for (std::int64_t h = 0; h < kHidden; ++h) store_element(dtype, out.data(), h, 1.5F);
      WeightedSum sum{.rows = skipped,
                      .num_rows = num_rows,
                      .hidden = kHidden,
                      .row_dtype = dtype,
                      .out_dtype = dtype,
                      .out = out.data(),
                      .accumulate = true};
      kernels().weighted_sum(sum);
      for (std::int64_t h = 0; h < kHidden; ++h) ASSERT_EQ(load_element(dtype, out.data(), h), 1.5F);
      sum.accumulate = false;
      kernels().weighted_sum(sum);
      for (std::size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], 0);
    }
  }
}

TEST_P(WeightedSumTest, KeepsSubnormalsAndRoundsOnce) {
  // A bf16 subnormal must come back: a kernel that flushes gives 0. And 1 + 2^-8 lies half way between two
  // bf16: even wins.
  constexpr std::int64_t kHidden = 70;
  GuardedBuffer row(kHidden * 2, 5);
  GuardedBuffer out(kHidden * 2, 9);
  const float one = 1;
  const void* pointer = row.data();
  for (const std::uint16_t bits : std::array<std::uint16_t, 3>{0x0001, 0x007f, 0x8001}) {
    for (std::int64_t h = 0; h < kHidden; ++h) std::memcpy(row.data() + 2 * h, &bits, 2);
    kernels().weighted_sum(
        {.rows = &pointer, .weights = &one, .num_rows = 1, .hidden = kHidden, .out = out.data()});
    ASSERT_TRUE(out == row) << bits;
  }
  GuardedBuffer wide(kHidden * 4, 7);
  pointer = wide.data();
  for (std::int64_t h = 0; h < kHidden; ++h) store_element(DType::f32, wide.data(), h, 1.0F + 0x1p-8F);
  kernels().weighted_sum({.rows = &pointer,
                          .weights = &one,
                          .num_rows = 1,
                          .hidden = kHidden,
                          .row_dtype = DType::f32,
                          .out = out.data()});
  for (std::int64_t h = 0; h < kHidden; ++h) ASSERT_EQ(load_element(DType::bf16, out.data(), h), 1.0F);
}

TEST_P(WeightedSumTest, RoundsEveryKindOfFloatToBf16AsTheScalarOne) {
  // All upper halves, with lower halves at and beside the tie.
  const float one = 1;
  constexpr std::int64_t kHidden = 65536;
  GuardedBuffer row(kHidden * 4);
  GuardedBuffer actual(kHidden * 2);
  GuardedBuffer expected(kHidden * 2);
  const void* pointer = row.data();
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const std::uint32_t low : {0x0000U, 0x0001U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU, 0x1000U, 0x0fffU}) {
      for (std::uint32_t high = 0; high < 65536; ++high) {
        const std::uint32_t bits = high << 16 | low;
        std::memcpy(row.data() + 4 * high, &bits, 4);
      }
      WeightedSum sum{.rows = &pointer,
                      .weights = &one,
                      .num_rows = 1,
                      .hidden = kHidden,
                      .row_dtype = DType::f32,
                      .out_dtype = dtype,
                      .out = actual.data()};
      kernels().weighted_sum(sum);
      sum.out = expected.data();
      reference().weighted_sum(sum);
      ASSERT_EQ(first_difference(dtype, actual, expected), -1) << dtype_name(dtype) << " low half " << low;
    }
  }
}

TEST_P(WeightedSumTest, StaysNanWhenAWeightIsNanWithAFullPayload) {
  // Rounding such a payload up by one would carry into the sign and leave a zero.
  constexpr std::int64_t kHidden = 150;
  GuardedBuffer row(kHidden * 2);
  GuardedBuffer out(kHidden * 2);
  for (std::int64_t h = 0; h < kHidden; ++h) store_element(DType::bf16, row.data(), h, 1.0F);
  const void* pointer = row.data();
  for (const std::uint32_t bits : {0x7fffffffU, 0xffffffffU, 0x7f800001U}) {
    float weight = 0;
    std::memcpy(&weight, &bits, sizeof weight);
    kernels().weighted_sum(
        {.rows = &pointer, .weights = &weight, .num_rows = 1, .hidden = kHidden, .out = out.data()});
    for (std::int64_t h = 0; h < kHidden; ++h)
      ASSERT_TRUE(std::isnan(load_element(DType::bf16, out.data(), h)))
          << "weight " << bits << ", column " << h;
  }
}

SHUNT_FOR_EVERY_ISA(WeightedSumTest);

}  // namespace
}  // namespace shunt::test

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include <shunt/layout/slots.h>

namespace shunt {
namespace {

std::vector<std::int64_t> starts_of(const SlotLayout& slots, const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> starts(counts.size() + 1, -1);
  slots.starts(counts.data(), static_cast<std::int64_t>(counts.size()), starts.data());
  return starts;
}

TEST(SlotLayoutTest, PacksExpertsAtAlignedStarts) {
  const SlotLayout slots{RowLayout::packed, 8, 0};
  EXPECT_EQ(starts_of(slots, {3, 0, 8, 9}), (std::vector<std::int64_t>{0, 8, 8, 16, 32}));
}

TEST(SlotLayoutTest, PadsExpertsToOneSize) {
  const SlotLayout slots{RowLayout::padded, 4, 12};
  EXPECT_EQ(starts_of(slots, {3, 0, 12}), (std::vector<std::int64_t>{0, 12, 24, 36}));
}

TEST(SlotLayoutTest, WritesOneZeroWhenThereAreNoExperts) {
  EXPECT_EQ(starts_of({}, {}), (std::vector<std::int64_t>{0}));
}

TEST(RowBoundTest, CountsATokenOncePerLocalExpertAtMost) {
  EXPECT_EQ(max_arriving_rows({128, 8, 8, 32}), 128 * 8 * 8);
  EXPECT_EQ(max_arriving_rows({128, 8, 8, 3}), 128 * 8 * 3);
  EXPECT_EQ(max_arriving_rows({128, 8, 8, 0}), 0);
}

TEST(RowBoundTest, HoldsEveryWayToSplitTheArrivingRows) {
  for (const std::int64_t alignment : {1, 4, 7}) {
    const SlotLayout slots{RowLayout::packed, alignment, 0};
    for (std::int64_t a = 0; a <= 9; ++a)
      for (std::int64_t b = 0; b <= 9; ++b)
        for (std::int64_t c = 0; c <= 9; ++c)
          ASSERT_LE(starts_of(slots, {a, b, c}).back(), workspace_rows(slots, {0, 1, 1, 3}, a + b + c));
  }
}

TEST(RowBoundTest, IsExactForPaddedRows) {
  const SlotLayout slots{RowLayout::padded, 1, 16};
  EXPECT_EQ(workspace_rows(slots, {2, 8, 2, 5}, 3), 5 * 16);
}

TEST(CountTest, SkipsNegativeIdsOfBothWidths) {
  const ExpertPartition partition{5, 2};  // rank 0: 0 1 2, rank 1: 3 4
  constexpr std::array<std::int32_t, 6> kIds = {0, 2, -1, 4, 2, -7};
  constexpr std::array<std::int64_t, 6> kWideIds = {0, 2, -1, 4, 2, -7};
  std::array<std::int64_t, 2> per_rank = {};
  count_per_rank(kIds.data(), 6, partition, per_rank.data());
  EXPECT_EQ(per_rank, (std::array<std::int64_t, 2>{3, 1}));
  count_per_rank(kWideIds.data(), 6, partition, per_rank.data());  // adds to what is there
  EXPECT_EQ(per_rank, (std::array<std::int64_t, 2>{6, 2}));
  std::array<std::int64_t, 5> per_expert = {};
  count_per_expert(kWideIds.data(), 6, per_expert.data());
  EXPECT_EQ(per_expert, (std::array<std::int64_t, 5>{1, 0, 2, 0, 1}));
}

TEST(ExclusiveScanTest, EndsWithTheTotal) {
  constexpr std::array<std::int64_t, 3> kCounts = {4, 0, 5};
  std::array<std::int64_t, 4> offsets = {};
  exclusive_scan(kCounts.data(), 3, offsets.data());
  EXPECT_EQ(offsets, (std::array<std::int64_t, 4>{0, 4, 4, 9}));
}

}  // namespace
}  // namespace shunt

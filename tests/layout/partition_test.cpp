#include <gtest/gtest.h>

#include <shunt/layout/partition.h>

namespace shunt {
namespace {

TEST(ExpertPartitionTest, GivesTheFirstRanksOneMoreWhenExpertsDoNotDivide) {
  constexpr ExpertPartition partition{10, 4};
  constexpr std::int32_t kCounts[] = {3, 3, 2, 2};
  constexpr std::int32_t kFirsts[] = {0, 3, 6, 8};
  for (std::int32_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(partition.count(rank), kCounts[rank]);
    EXPECT_EQ(partition.first(rank), kFirsts[rank]);
  }
  EXPECT_EQ(partition.max_count(), 3);
}

TEST(ExpertPartitionTest, LeavesTheLastRanksEmptyWhenExpertsAreFew) {
  constexpr ExpertPartition partition{3, 5};
  EXPECT_EQ(partition.count(2), 1);
  EXPECT_EQ(partition.count(3), 0);
  EXPECT_EQ(partition.first(3), 3);
  EXPECT_EQ(partition.first(4), 3);
}

TEST(ExpertPartitionTest, OwnsEveryExpertExactlyOnce) {
  for (std::int32_t experts = 1; experts <= 40; ++experts) {
    for (std::int32_t ranks = 1; ranks <= 12; ++ranks) {
      const ExpertPartition partition{experts, ranks};
      std::int32_t next = 0;
      for (std::int32_t rank = 0; rank < ranks; ++rank) {
        ASSERT_EQ(partition.first(rank), next);
        ASSERT_LE(partition.count(rank), partition.max_count());
        for (std::int32_t e = 0; e < partition.count(rank); ++e)
          ASSERT_EQ(partition.owner(next + e), rank) << experts << " experts, " << ranks << " ranks";
        next += partition.count(rank);
      }
      ASSERT_EQ(next, experts);
    }
  }
}

TEST(TokenShareTest, CoversAllTokensInOrderWithoutOverlap) {
  for (std::int64_t tokens = 0; tokens <= 20; ++tokens) {
    for (std::int32_t members = 1; members <= 6; ++members) {
      std::int64_t next = 0;
      for (std::int32_t member = 0; member < members; ++member) {
        const TokenShare share = token_share(tokens, members, member);
        ASSERT_EQ(share.begin, next);
        ASSERT_GE(share.end - share.begin, tokens / members);
        ASSERT_LE(share.end - share.begin, tokens / members + 1);
        next = share.end;
      }
      ASSERT_EQ(next, tokens);
    }
  }
}

TEST(RoundUpTest, KeepsMultiplesAndRaisesTheRest) {
  EXPECT_EQ(round_up(0, 128), 0);
  EXPECT_EQ(round_up(1, 128), 128);
  EXPECT_EQ(round_up(128, 128), 128);
  EXPECT_EQ(round_up(129, 128), 256);
  EXPECT_EQ(round_up(7, 1), 7);
}

}  // namespace
}  // namespace shunt

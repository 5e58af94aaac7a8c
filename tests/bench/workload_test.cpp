#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/bench/workload.h>
#include <shunt/core/error.h>

#include "points.h"

namespace shunt::bench {
namespace {

TEST(WorkloadTest, MakesTokensThatDependOnTheirPlaceOnly) {
  std::vector<float> first(33);
  std::vector<float> again(33);
  std::vector<float> other(33);
  fill_token(3, 1, 4, 33, first.data());
  fill_token(3, 1, 5, 33, other.data());
  fill_token(3, 1, 4, 33, again.data());
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
  EXPECT_TRUE(std::all_of(first.begin(), first.end(), [](float x) { return x >= -1 && x < 1; }));
}

TEST(WorkloadTest, KeepsTokensWhenMoreAreAsked) {
  Point few = small_point();
  Point many = small_point();
  many.tokens = 9;
  const Workload a(few, nullptr);
  const Workload b(many, nullptr);
  for (std::int32_t group = 0; group < 2; ++group)
    for (std::int64_t t = 0; t < few.tokens; ++t)
      EXPECT_TRUE(std::equal(a.token(group, t), a.token(group, t) + a.row_bytes(), b.token(group, t)));
}

TEST(WorkloadTest, CountsRowsPerPair) {
  Point point = small_point();
  point.ranks = 4;
  point.dp_size = 2;
  const Workload workload(point, nullptr);
  ASSERT_EQ(workload.num_groups(), 2);
  EXPECT_EQ(workload.selections(), 2 * point.tokens * point.top_k);
  std::int64_t arriving = 0;
  for (std::int32_t rank = 0; rank < 4; ++rank) arriving += workload.arriving_rows(rank);
  EXPECT_EQ(arriving, workload.selections());
  // Both members of a group get the results of the whole group.
  for (std::int32_t owner = 0; owner < 4; ++owner) {
    EXPECT_EQ(workload.returned_rows(owner, 0), workload.sent_rows(0, owner) + workload.sent_rows(1, owner));
    EXPECT_EQ(workload.returned_rows(owner, 0), workload.returned_rows(owner, 1));
  }
  EXPECT_EQ(workload.combine_bytes(), workload.selections() * 2 * workload.out_row_bytes());
}

TEST(WorkloadTest, BringsScalesWithFp8Tokens) {
  Point point = small_point();
  point.in_dtype = DType::f8e4m3;
  point.hidden = 130;
  const Workload workload(point, nullptr);
  EXPECT_EQ(workload.num_scales(), 2);
  std::vector<float> exact(130);
  fill_token(point.seed, 1, 2, 130, exact.data());
  const float* scales = workload.token_scales(1, 2);
  for (std::int64_t h = 0; h < 130; ++h)
    EXPECT_NEAR(load_element(point.in_dtype, workload.token(1, 2), h) * scales[h / 128],
                exact[static_cast<std::size_t>(h)], 0.07);
}

TEST(WorkloadTest, WrapsDumpedTokensAndRefusesOtherSizes) {
  Point point = small_point();
  point.tokens = 3;
  ModelDump dump;
  dump.num_tokens = 4;
  dump.hidden = point.hidden;
  dump.x.resize(static_cast<std::size_t>(4 * point.hidden));
  for (std::size_t i = 0; i < dump.x.size(); ++i)
    dump.x[i] = static_cast<float>(i / static_cast<std::size_t>(point.hidden));
  dump.routing = {.num_tokens = 4,
                  .top_k = 2,
                  .num_experts = 6,
                  .ids = {0, 1, 1, 2, 2, 3, 4, 5},
                  .weights = std::vector<float>(8, 0.5F)};
  const Workload workload(point, &dump);
  EXPECT_EQ(load_element(point.in_dtype, workload.token(1, 0), 0), 3.0F);  // tokens 3, 0, 1 in group 1
  EXPECT_EQ(load_element(point.in_dtype, workload.token(1, 1), 0), 0.0F);
  EXPECT_EQ(workload.routing(1).ids, (std::vector<std::int32_t>{4, 5, 0, 1, 1, 2}));
  point.hidden = 41;
  EXPECT_THROW(Workload(point, &dump), Error);
}

}  // namespace
}  // namespace shunt::bench

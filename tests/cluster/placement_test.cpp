#include <shunt/cluster/placement.h>

#include <algorithm>
#include <numeric>

#include "temporary_directory.h"

namespace shunt {
namespace {

using Experts = std::vector<std::int32_t>;

const std::vector<float> kFirst = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
const std::vector<float> kSecond = {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};

// The example of EPLB's README, and further outputs of an independent implementation that reproduces it.
TEST(PlacementTest, BalancesAsEplbDoes) {
  const PlacementShape shape{16, 4, 2, 8};
  const Placement first = place_balanced(kFirst, shape);
  const Placement second = place_balanced(kSecond, shape);
  EXPECT_EQ(first.experts, (Experts{5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1}));
  EXPECT_EQ(second.experts, (Experts{7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1}));
  using Loads = std::vector<double>;
  EXPECT_EQ(rank_loads(first, kFirst), (Loads{121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152}));
  EXPECT_EQ(rank_loads(second, kSecond), (Loads{173, 179.5, 120.5, 172, 123, 152, 118.5, 117.5}));
}

TEST(PlacementTest, BalancesOverAllRanksWhereNodesDoNotDivideGroups) {
  for (const PlacementShape& shape :
       {PlacementShape{16, 3, 2, 8}, PlacementShape{16, 1, 2, 8}, PlacementShape{16, 4, 1, 8}}) {
    EXPECT_EQ(place_balanced(kFirst, shape).experts,
              (Experts{10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1}));
    EXPECT_EQ(place_balanced(kSecond, shape).experts,
              (Experts{1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7}));
  }
}

TEST(PlacementTest, SimpleStrategies) {
  EXPECT_EQ(place_linear(4, 2).experts, (Experts{0, 1, 2, 3}));
  EXPECT_EQ(place_round_robin(4, 2).experts, (Experts{0, 2, 1, 3}));
  const Placement hashed = place_hashed(64, 8);
  Experts sorted = hashed.experts;
  std::sort(sorted.begin(), sorted.end());
  Experts all(64);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(sorted, all);
  EXPECT_EQ(hashed.offsets.back(), 64);
  // Groups of 2; the heaviest two are 0 and 3, so each node gets one of them.
  EXPECT_EQ(place_by_group({9, 9, 1, 1, 2, 2, 8, 8}, {8, 4, 2, 4}).experts,
            (Experts{0, 1, 2, 3, 6, 7, 4, 5}));
}

TEST(PlacementTest, CountsWhatMustMove) {
  const Placement linear = place_linear(8, 4);
  EXPECT_EQ(moved_places(linear, linear), 0);
  EXPECT_EQ(moved_places(linear, place_round_robin(8, 4)), 6);
}

TEST(PlacementTest, RefusesNumbersThatDoNotDivide) {
  const auto refused = [](const std::string& message, const PlacementShape& shape) {
    expect_error(Errc::invalid_argument, message, [&] { (void)place_balanced(kFirst, shape); });
  };
  refused("placement: 5 groups do not divide 12 experts", {16, 5, 1, 8});
  refused("placement: 3 nodes do not divide 8 ranks", {16, 1, 3, 8});
  refused("placement: 8 ranks do not divide 15 places", {15, 1, 1, 8});
  refused("placement: 8 places for 12 experts", {8, 1, 1, 8});
  expect_error(Errc::invalid_argument, "placement: 3 ranks do not divide 8 experts",
               [] { (void)place_linear(8, 3); });
  expect_error(Errc::invalid_argument, "placement: expert 1 has a load of -1", [] {
    (void)place_balanced({1, -1}, {2, 1, 1, 2});
  });
}

}  // namespace
}  // namespace shunt

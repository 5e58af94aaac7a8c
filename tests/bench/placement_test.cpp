#include <vector>

#include <gtest/gtest.h>

#include <shunt/bench/placement.h>

namespace shunt::bench {
namespace {

TEST(PlacementTest, LabelsByThreshold) {
  const PlacementThresholds amd = vendor_thresholds("AuthenticAMD");
  EXPECT_STREQ(placement_label(40, amd), "near");
  EXPECT_STREQ(placement_label(100, amd), "same_l3");
  EXPECT_STREQ(placement_label(410, amd), "far");
  EXPECT_STREQ(placement_label(-1, amd), "single");
  EXPECT_STREQ(placement_label(-1, amd, "network"), "network");
  EXPECT_STREQ(placement_label(100, amd, "network"), "same_l3") << "ranks 0 and 1 of one node";
}

TEST(PlacementTest, TakesMeshRoundTripAsOneCacheOnIntel) {
  EXPECT_STREQ(placement_label(300, vendor_thresholds("GenuineIntel")), "same_l3");
  EXPECT_STREQ(placement_label(700, vendor_thresholds("GenuineIntel")), "far");
}

TEST(PlacementTest, DropsBlockWhoseProbesDisagree) {
  const PlacementThresholds thresholds;
  EXPECT_EQ(block_label(100, 110, thresholds), "same_l3");
  EXPECT_EQ(block_label(100, 400, thresholds), "");
  EXPECT_EQ(block_label(-1, -1, thresholds), "single");
  EXPECT_EQ(block_label(-1, -1, thresholds, "network"), "network");
}

TEST(PlacementTest, MovesThresholdIntoWidestGapNearby) {
  const std::vector<double> trips{98, 100, 104, 250, 260, 255};
  const PlacementThresholds refined = refine_thresholds({.near_ns = 65, .same_l3_ns = 190}, trips);
  EXPECT_NEAR(refined.same_l3_ns, 161.2, 0.1);  // sqrt(104 * 250)
  EXPECT_EQ(refined.near_ns, 65);
}

TEST(PlacementTest, KeepsPriorWithoutGap) {
  const std::vector<double> trips{270, 271, 280, 290};
  const PlacementThresholds refined = refine_thresholds({.near_ns = 65, .same_l3_ns = 450}, trips);
  EXPECT_EQ(refined.near_ns, 65);
  EXPECT_EQ(refined.same_l3_ns, 450);
}

TEST(PlacementTest, KeepsClassesApartWhereOneGapServesBoth) {
  const std::vector<double> trips{60, 180};
  const PlacementThresholds refined = refine_thresholds({.near_ns = 100, .same_l3_ns = 110}, trips);
  EXPECT_LT(refined.near_ns, refined.same_l3_ns);
}

}  // namespace
}  // namespace shunt::bench

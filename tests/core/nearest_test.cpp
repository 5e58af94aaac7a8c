#include <shunt/core/nearest.h>

#include <gtest/gtest.h>

namespace shunt {
namespace {

TEST(NearestTest, CountsEdits) {
  EXPECT_EQ(name_distance("", ""), 0U);
  EXPECT_EQ(name_distance("", "abc"), 3U);
  EXPECT_EQ(name_distance("abc", ""), 3U);
  EXPECT_EQ(name_distance("kitten", "sitting"), 3U);
  EXPECT_EQ(name_distance("tpok", "topk"), 1U);
  EXPECT_EQ(nearest_name("r2", {"r1", "v2", "r22"}), "r1");
  EXPECT_EQ(nearest_name("x", {}), "");
}

TEST(NearestTest, SuggestsOnlyWhatMayHaveBeenMeant) {
  const std::vector<std::string> fabrics{"nvlink", "ib", "ethernet"};
  EXPECT_EQ(near_name("nvlnk", fabrics), "nvlink");
  EXPECT_EQ(near_name("infiniband", fabrics), "");
  EXPECT_EQ(near_name("ob", fabrics), "ib");
  EXPECT_EQ(near_name("xy", fabrics), "");
  EXPECT_EQ(near_name("eth", fabrics), "ethernet");
  EXPECT_EQ(near_name("et", fabrics), "");
  EXPECT_EQ(near_name("EtherNet", fabrics), "ethernet");
  EXPECT_EQ(near_name("gbps", {"fabric", "gb_per_s"}), "gb_per_s");
  EXPECT_EQ(near_name("kv_rank", {"heads", "kv_heads"}), "");
  EXPECT_EQ(near_name("", {}), "");
  EXPECT_EQ(allowed_names("ethernt", fabrics), "did you mean \"ethernet\"? Allowed are nvlink, ib, ethernet");
  EXPECT_EQ(allowed_names("infiniband", fabrics), "allowed are nvlink, ib, ethernet");
}

}  // namespace
}  // namespace shunt

#include <shunt/plan/grouping.h>

#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "models.h"

namespace shunt::plan {
namespace {

const std::vector<float> kLoads = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};

TEST(GroupingTest, ComparesStrategies) {
  GroupingOptions options;
  options.shape = {16, 4, 2, 8};
  const Report report = report_grouping(kLoads, options);
  // 8 ranks do not divide 12 experts, so only these two fit.
  ASSERT_EQ(report.tables[0].rows.size(), 2U);
  EXPECT_EQ(std::get<std::string>(report.tables[0].rows[0][0]), "hash");
  EXPECT_EQ(std::get<std::string>(report.tables[0].rows[1][0]), "latency_balanced");
  EXPECT_NEAR(std::get<double>(report.tables[0].rows[1][3]), 0.8277, 5e-5);
  EXPECT_EQ(report.notes.size(), 3U);
  options.strategies = {"linear"};
  expect_refused("placement: 8 ranks do not divide 12 experts",
                 [&] { (void)report_grouping(kLoads, options); });
  options.strategies = {"linaer"};
  expect_refused(
      "strategy \"linaer\" does not exist; did you mean \"linear\"? Allowed are linear, round_robin, hash, "
      "locality, latency_balanced",
      [&] { (void)report_grouping(kLoads, options); });
}

TEST(GroupingTest, RefusesNodesThatDoNotDivideTheRanks) {
  GroupingOptions options;
  for (const auto& [nodes, message] :
       {std::pair<std::int64_t, const char*>{3, "3 nodes do not divide 8 ranks: every node has as many"},
        {16, "16 nodes do not divide 8 ranks: every node has as many"},
        {0, "0 nodes do not divide 8 ranks: every node has as many"}}) {
    options.shape = {12, 1, nodes, 8};
    expect_refused(message, [&] { (void)report_grouping(kLoads, options); });
  }
}

TEST(GroupingTest, PowerLawLoadsAreTheSameEverywhere) {
  const std::vector<float> a = power_law_loads(64, 1.01, 17);
  EXPECT_EQ(a, power_law_loads(64, 1.01, 17));
  EXPECT_NE(a, power_law_loads(64, 1.01, 18));
  EXPECT_EQ(power_law_loads(4, 0, 1), (std::vector<float>{1000, 1000, 1000, 1000}));
}

TEST(GroupingTest, ReadsLoads) {
  std::string path = "/tmp/shunt-loads-XXXXXX";
  const int fd = mkstemp(path.data());
  ASSERT_GE(fd, 0);
  close(fd);
  std::ofstream(path) << "1,2, 3\n\n4\t5 6.5\n";
  EXPECT_EQ(read_loads(path), (std::vector<float>{5, 7, 9.5}));
  for (const auto& [text, message] :
       {std::pair<const char*, const char*>{"1,2\n3\n", ":2: 1 loads after lines with 2"},
        {"1,-2\n", ":1: \"-2\" is not a load: a number of at least 0"},
        {"1,x\n", ":1: \"x\" is not a load: a number of at least 0"},
        {"\n", ": there are no loads"}}) {
    std::ofstream(path) << text;
    try {
      (void)read_loads(path);
      ADD_FAILURE() << "accepted " << text;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()), path + message);
    }
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace shunt::plan

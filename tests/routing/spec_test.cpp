#include <gtest/gtest.h>

#include <shunt/routing/routing.h>

#include "expect_error.h"

namespace shunt {
namespace {

using test::expect_error;

TEST(RoutingSpecTest, RoundTripsEveryKindAndModifier) {
  for (const char* text : {
           "uniform",
           "one",
           "powerlaw:0",
           "powerlaw:1.25",
           "powerlaw:0.1",
           "grouped:8,4",
           "grouped:1,1",
           "trace:a/b.jsonl",
           "text:data/text/kjv.txt",
           "uniform+mask:0.25",
           "one+uneven",
           "powerlaw:1.5+mask:1+uneven",
           "text:a+b.txt",
           "text:a+b.txt+uneven",
           "trace:+",
           "text:c:/x+mask.txt+mask:0.5",
           "text:a+unevenly",
       }) {
    EXPECT_EQ(routing_name(parse_routing(text)), text);
  }
}

TEST(RoutingSpecTest, ReadsFields) {
  const RoutingSpec spec = parse_routing("grouped:16,2+uneven+mask:0.125");
  EXPECT_EQ(spec.kind, RoutingKind::grouped);
  EXPECT_EQ(spec.groups, 16);
  EXPECT_EQ(spec.top_groups, 2);
  EXPECT_DOUBLE_EQ(spec.mask_share, 0.125);
  EXPECT_TRUE(spec.uneven);
  EXPECT_EQ(routing_name(spec), "grouped:16,2+mask:0.125+uneven");
  EXPECT_DOUBLE_EQ(parse_routing("powerlaw:2e-1").alpha, 0.2);
  EXPECT_EQ(routing_name(parse_routing("powerlaw:1e30")), "powerlaw:1e30");
  EXPECT_EQ(parse_routing("text:x+y:z").file, "x+y:z");
}

TEST(RoutingSpecTest, NamesWhatIsWrong) {
  const std::string allowed =
      "; allowed: KIND[:ARGUMENT][+mask:SHARE][+uneven] with KIND one of uniform, powerlaw:ALPHA, one, "
      "grouped:GROUPS,TOP_GROUPS, trace:FILE, text:FILE";
  const std::pair<const char*, const char*> cases[] = {
      {"", "unknown kind \"\""},
      {"zipf", "unknown kind \"zipf\""},
      {"Uniform", "unknown kind \"Uniform\""},
      {"uniform:3", "uniform takes no argument"},
      {"one:", "one takes no argument"},
      {"powerlaw", "alpha \"\" is not a finite number >= 0"},
      {"powerlaw:x", "alpha \"x\" is not a finite number >= 0"},
      {"powerlaw:-1", "alpha \"-1\" is not a finite number >= 0"},
      {"powerlaw:inf", "alpha \"inf\" is not a finite number >= 0"},
      {"powerlaw:1.5x", "alpha \"1.5x\" is not a finite number >= 0"},
      {"grouped", "\"\" is not GROUPS,TOP_GROUPS with 1 <= TOP_GROUPS <= GROUPS"},
      {"grouped:8", "\"8\" is not GROUPS,TOP_GROUPS with 1 <= TOP_GROUPS <= GROUPS"},
      {"grouped:4,8", "\"4,8\" is not GROUPS,TOP_GROUPS with 1 <= TOP_GROUPS <= GROUPS"},
      {"grouped:4,0", "\"4,0\" is not GROUPS,TOP_GROUPS with 1 <= TOP_GROUPS <= GROUPS"},
      {"trace", "trace needs a file, trace:FILE"},
      {"text:", "text needs a file, text:FILE"},
      {"text:+uneven", "text needs a file, text:FILE"},
      {"uniform+mask:1.5", "mask share \"1.5\" is not a number in [0, 1]"},
      {"uniform+mask:nan", "mask share \"nan\" is not a number in [0, 1]"},
      {"uniform+mask:", "mask share \"\" is not a number in [0, 1]"},
      {"uniform+mask:0.1+mask:0.1", "modifier \"mask\" is given twice"},
      {"uniform+uneven+uneven", "modifier \"uneven\" is given twice"},
      {"uniform+odd", "unknown modifier \"odd\""},
      {"uniform+odd+uneven", "unknown modifier \"odd\""},
  };
  for (const auto& [text, why] : cases) {
    expect_error(Errc::invalid_argument, "routing \"" + std::string(text) + "\": " + why + allowed,
                 [&, input = text] { (void)parse_routing(input); });
  }
}

}  // namespace
}  // namespace shunt

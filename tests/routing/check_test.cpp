#include <limits>

#include <gtest/gtest.h>

#include <shunt/routing/routing.h>

#include "expect_error.h"

namespace shunt {
namespace {

using test::expect_error;

Routing two_tokens() {
  return {2, 2, 256, {0, 255, -1, -1}, {0.5F, 0.5F, 0.0F, 0.0F}};
}

TEST(CheckRoutingTest, AcceptsSkippedChoicesAndNoTokens) {
  EXPECT_NO_THROW(check_routing(two_tokens(), "x"));
  EXPECT_NO_THROW(check_routing({0, 1, 1, {}, {}}, "x"));
}

TEST(CheckRoutingTest, NamesIdOutsideRange) {
  Routing routing = two_tokens();
  routing.ids[3] = 300;
  expect_error(Errc::invalid_argument, "topk_idx.npy: token 1, k 1: expert 300 is outside [-1, 255]",
               [&] { check_routing(routing, "topk_idx.npy"); });
  routing.ids[3] = 256;
  expect_error(Errc::invalid_argument, "a: token 1, k 1: expert 256 is outside [-1, 255]",
               [&] { check_routing(routing, "a"); });
  routing.ids[3] = -2;
  expect_error(Errc::invalid_argument, "a: token 1, k 1: expert -2 is outside [-1, 255]",
               [&] { check_routing(routing, "a"); });
}

TEST(CheckRoutingTest, NamesRepeatedExpert) {
  expect_error(Errc::invalid_argument,
               "a: token 0, k 3: expert 7 is chosen twice; the experts of a token must be distinct", [] {
                 check_routing({1, 4, 8, {3, 7, -1, 7}, {0.1F, 0.2F, 0.3F, 0.4F}}, "a");
               });
}

TEST(CheckRoutingTest, NamesWeightThatIsNotFinite) {
  Routing routing = two_tokens();
  routing.weights[2] = std::numeric_limits<float>::quiet_NaN();
  expect_error(Errc::invalid_argument,
               "a: token 1, k 0: weight nan is not finite; weights are finite float32 values",
               [&] { check_routing(routing, "a"); });
  routing.weights[2] = -std::numeric_limits<float>::infinity();
  expect_error(Errc::invalid_argument,
               "a: token 1, k 0: weight -inf is not finite; weights are finite float32 values",
               [&] { check_routing(routing, "a"); });
}

TEST(CheckRoutingTest, NamesSizesThatDisagree) {
  expect_error(Errc::invalid_argument, "a: 0 experts; at least 1 is needed", [] {
    check_routing({0, 1, 0, {}, {}}, "a");
  });
  expect_error(Errc::invalid_argument, "a: top-k 5 is outside [1, 4], the number of experts", [] {
    check_routing({0, 5, 4, {}, {}}, "a");
  });
  expect_error(Errc::invalid_argument, "a: 2 ids and 1 weights; 1 tokens with 2 choices need 2 of each", [] {
    check_routing({1, 2, 4, {0, 1}, {1.0F}}, "a");
  });
}

}  // namespace
}  // namespace shunt

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include <shunt/routing/gate.h>

#include "expect_error.h"
#include "golden.h"

namespace shunt {
namespace {

using test::expect_error;
using test::golden_logits;
using test::Matrix;
using test::route;

void expect_refused(const std::string& message, const std::function<void()>& body) {
  expect_error(Errc::invalid_argument, message, body);
}

TEST(GateErrorTest, UnknownNameGetsTheNearest) {
  try {
    (void)make_gate("sofkt", 4, 2);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_EQ(std::string(error.what())
                  .find("gate \"sofkt\" is not known; did you mean \"softk\"? Allowed are top1, "),
              0U)
        << error.what();
  }
  EXPECT_EQ(make_gate("expert_choice", 4, 2).name, "expert-choice");
}

TEST(GateErrorTest, NamesWhatDoesNotFit) {
  expect_refused("gate softk: top-k 5 is outside [1, 4], the number of experts",
                 [] { (void)make_gate("softk", 4, 5); });
  expect_refused("gate softk: top-k 0 is outside [1, 4], the number of experts",
                 [] { (void)make_gate("softk", 4, 0); });
  expect_refused("gate softk: 0 experts; at least 1 is needed", [] { (void)make_gate("softk", 0, 1); });
  expect_refused("gate top1: top-k 2 is not allowed; a token gets 1 expert",
                 [] { (void)make_gate("top1", 4, 2); });
  expect_refused("gate deepseek-v3: 8 groups do not divide 12 experts; allowed are 1, 2, 3, 4, 6, 12",
                 [] { (void)make_gate("deepseek-v3", 12, 2); });
}

TEST(GateErrorTest, NamesWrongFields) {
  const auto with = [](const char* name, const std::function<void(GateConfig&)>& change) {
    return [name, change] {
      GateConfig gate = make_gate(name, 8, 3);
      change(gate);
      check_gate(gate);
    };
  };
  expect_refused("gate sigmoid: top groups 5 is outside [1, 4], the number of groups",
                 with("sigmoid", [](GateConfig& gate) {
                   gate.groups = 4;
                   gate.top_groups = 5;
                 }));
  expect_refused("gate sigmoid: 1 groups of 2 experts hold 2 experts, fewer than top-k 3",
                 with("sigmoid", [](GateConfig& gate) { gate.groups = 4; }));
  expect_refused("gate sigmoid: temperature 0 is outside [1.175e-38, 3.403e+38]",
                 with("sigmoid", [](GateConfig& gate) { gate.temperature = 0; }));
  expect_refused("gate sigmoid: temperature 1e-46 is outside [1.175e-38, 3.403e+38]",
                 with("sigmoid", [](GateConfig& gate) { gate.temperature = 1e-46; }));
  expect_refused("gate sigmoid: scale 1e+39 is outside [1.175e-38, 3.403e+38]",
                 with("sigmoid", [](GateConfig& gate) { gate.scale = 1e39; }));
  expect_refused(
      "gate compat-expert-choice: the old expert choice weighs by a softmax over the chosen; weights can "
      "only be that",
      with("compat-expert-choice", [](GateConfig& gate) {
        gate.score = Score::softmax;
        gate.weights = WeightRule::score;
      }));
  expect_refused("gate sigmoid: scale nan is outside [1.175e-38, 3.403e+38]",
                 with("sigmoid", [](GateConfig& gate) { gate.scale = std::nan(""); }));
  expect_refused("gate expert-choice: capacity factor -1 is not a finite number > 0",
                 with("expert-choice", [](GateConfig& gate) { gate.capacity_factor = -1; }));
  expect_refused(
      "gate softk: weights from scores need scores that are not negative: softmax, sigmoid or sqrt_softplus",
      with("softk", [](GateConfig& gate) { gate.weights = WeightRule::sum; }));
  expect_refused(
      "gate expert-choice: 2 groups; only gates in which tokens choose by score can be limited to groups",
      with("expert-choice", [](GateConfig& gate) {
        gate.groups = 2;
        gate.top_groups = 2;
      }));
  expect_refused("gate hash: a hash has no scores; its weights can only be mean or one",
                 with("hash", [](GateConfig& gate) { gate.weights = WeightRule::softmax_chosen; }));
}

TEST(GateErrorTest, NamesTokenAndExpertOfABadLogit) {
  auto logits = golden_logits<float>();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  logits.row(3)[1] = nan;
  expect_refused("gate softk: the logit of token 3, expert 1 is nan; logits must be finite",
                 [&] { (void)route(make_gate("softk", 4, 2), logits); });
  expect_refused("gate expert-choice: the logit of token 3, expert 1 is nan; logits must be finite",
                 [&] { (void)route(make_gate("expert-choice", 4, 2), logits); });
  logits.row(3)[1] = -std::numeric_limits<float>::infinity();
  expect_refused("gate sinkhorn: the logit of token 3, expert 1 is -inf; logits must be finite",
                 [&] { (void)route(make_gate("sinkhorn", 4, 2), logits); });
}

TEST(GateErrorTest, NamesShapesThatDisagree) {
  const auto logits = golden_logits<double>();
  expect_refused("gate softk: logits of 4 experts; the gate has 5",
                 [&] { (void)route(make_gate("softk", 5, 2), logits); });
  expect_refused("gate hash: 0 token ids for 6 tokens; a hash gate looks at what each token is",
                 [&] { (void)route(make_gate("hash", 4, 2), logits); });
  std::vector<double> bias(3, 0.0);
  expect_refused("gate sigmoid: a bias of 3 experts; the gate has 4", [&] {
    (void)gate_forward<double>(make_gate("sigmoid", 4, 2), {.logits = logits.view(), .bias = bias});
  });
  bias = {0, 0, INFINITY, 0};
  expect_refused("gate sigmoid: the bias of expert 2 is inf; it must be finite", [&] {
    (void)gate_forward<double>(make_gate("sigmoid", 4, 2), {.logits = logits.view(), .bias = bias});
  });
  expect_refused(
      "gate expert-choice: a bias of 4 experts; only gates in which tokens choose by score take one", [&] {
        bias = {0, 0, 0, 0};
        (void)gate_forward<double>(make_gate("expert-choice", 4, 2), {.logits = logits.view(), .bias = bias});
      });
  const auto out = route(make_gate("softk", 4, 2), logits);
  Matrix<double> grad(6, 5);
  const std::vector<double> weights(12, 1.0);
  expect_refused("gate softk: the gradient is [6, 5]; it must have the shape of the logits, [6, 4]", [&] {
    gate_backward<double>(make_gate("softk", 4, 2), {.logits = logits.view()}, out, weights, grad.view());
  });
}

TEST(GateErrorTest, NamesWhatUpdatesCannotUse) {
  std::vector<double> bias(4);
  const std::vector<std::int64_t> counts(3, 1);
  expect_refused("bias update: a bias of 4 experts and counts of 3; both must be of the same, at least 1",
                 [&] { update_bias<double>(bias, counts); });
  const auto logits = golden_logits<double>();
  expect_refused("quantile balancing: top-k 4 is outside [1, 3]; one expert of 4 must be left over",
                 [&] { update_quantile_bias<double>(logits.view(), 4, bias); });
  auto copy = logits;
  expect_refused("jitter 1 is outside [0, 1)", [&] { apply_jitter<double>(copy.view(), 1.0, 1); });
  expect_refused("noise deviation -1 is not a finite number >= 0",
                 [&] { add_logit_noise<double>(copy.view(), -1.0, 1); });
}

}  // namespace
}  // namespace shunt

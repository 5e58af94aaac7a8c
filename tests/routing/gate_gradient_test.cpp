#include <cmath>

#include <gtest/gtest.h>

#include <shunt/routing/capacity.h>
#include <shunt/routing/gate.h>

#include "golden.h"

namespace shunt {
namespace {

using test::expect_gradient;
using test::largest_of;
using test::Matrix;
using test::random_logits;
using test::route;

constexpr std::int64_t kTokens = 7;
constexpr std::int32_t kExperts = 8;

/// A loss that looks at every weight differently; rows may be of any width.
double loss_of(const GateOutput<double>& out) {
  double sum = 0;
  for (std::size_t i = 0; i < out.weights.size(); ++i) {
    if (out.ids[i] < 0) continue;
    const auto token = static_cast<std::int64_t>(i) / out.top_k;
    sum += std::sin(1.0 + static_cast<double>(token * kExperts + out.ids[i])) * out.weights[i];
  }
  return sum;
}

std::vector<double> loss_gradient(const GateOutput<double>& out) {
  std::vector<double> grads(out.weights.size(), 0.0);
  for (std::size_t i = 0; i < grads.size(); ++i) {
    const auto token = static_cast<std::int64_t>(i) / out.top_k;
    if (out.ids[i] >= 0) grads[i] = std::sin(1.0 + static_cast<double>(token * kExperts + out.ids[i]));
  }
  return grads;
}

Matrix<double> backward(const GateConfig& gate, const GateInput<double>& input) {
  const auto out = gate_forward(gate, input);
  Matrix<double> grad(input.logits.rows, input.logits.cols);
  gate_backward<double>(gate, input, out, loss_gradient(out), grad.view());
  return grad;
}

void expect_true_gradient(const GateConfig& gate, std::span<const double> bias = {}) {
  SCOPED_TRACE(gate.name);
  Matrix<double> logits = random_logits(kTokens, kExperts, 21);
  const GateInput<double> input{.logits = logits.view(), .bias = bias};
  const Matrix<double> grad = backward(gate, input);
  EXPECT_GT(largest_of(grad.data), 1e-3);
  expect_gradient(logits, grad, [&] { return loss_of(gate_forward(gate, input)); });
}

TEST(GateGradientTest, AgreesWithFiniteDifferences) {
  for (const char* name : {"softk", "pre-softmax", "pre-softmax-renorm", "sigmoid", "sqrt-softplus",
                           "sinkhorn", "expert-choice", "quantile", "compat-softk", "compat-expert-choice"}) {
    GateConfig gate = make_gate(name, kExperts, 3);
    if (gate.selection == Selection::sinkhorn) gate.training = false;  // the choice must not move here
    expect_true_gradient(gate);
    gate.temperature = 0.7;
    gate.scale = 2.5;
    expect_true_gradient(gate);
  }
  expect_true_gradient(make_gate("top1", kExperts, 1));
  GateConfig balanced = make_gate("sinkhorn", kExperts, 1);
  balanced.training = false;
  expect_true_gradient(balanced);
  GateConfig grouped = make_gate("deepseek-v2", kExperts, 3);
  grouped.groups = 4;
  expect_true_gradient(grouped);
  // The balanced choice is far from a change at these logits, so that no step of the differences crosses one.
  expect_true_gradient(make_gate("sinkhorn", kExperts, 3));
  expect_true_gradient(make_gate("sigmoid", kExperts, 1));
  expect_true_gradient(make_gate("sqrt-softplus", kExperts, 1));
}

TEST(GateGradientTest, AgreesForNormsGroupsAndBias) {
  GateConfig gate = make_gate("sigmoid", kExperts, 3);
  gate.weights = WeightRule::p_norm;
  gate.norm_power = 2;
  expect_true_gradient(gate);
  gate.norm_power = 1;
  expect_true_gradient(gate);
  gate = make_gate("deepseek-v3", kExperts, 3);
  gate.groups = 4;
  gate.top_groups = 2;
  const std::vector<double> bias = {.1, -.2, .3, 0, .15, -.4, .05, .2};
  expect_true_gradient(gate, bias);
  expect_true_gradient(make_gate("quantile", kExperts, 3), bias);
}

TEST(GateGradientTest, ReluSumAgreesAwayFromZero) {
  Matrix<double> logits = random_logits(kTokens, kExperts, 22);
  for (double& z : logits.data) z += 2.5;  // all positive, so that no step crosses the kink
  const GateConfig gate = make_gate("compat-softk-sum", kExperts, 3);
  const GateInput<double> input{.logits = logits.view()};
  expect_gradient(logits, backward(gate, input), [&] { return loss_of(gate_forward(gate, input)); });
}

TEST(GateGradientTest, OldHardGatesHaveNone) {
  const auto logits = random_logits(kTokens, kExperts, 23);
  for (const char* name : {"compat-top1", "compat-topk-hard", "compat-hash"}) {
    const std::int32_t k = std::string(name) == "compat-top1" ? 1 : 3;
    EXPECT_EQ(largest_of(backward(make_gate(name, kExperts, k), {.logits = logits.view()}).data), 0.0)
        << name;
  }
  // softk with one expert: the weight is always 1.
  EXPECT_EQ(largest_of(backward(make_gate("compat-softk", kExperts, 1), {.logits = logits.view()}).data),
            0.0);
}

TEST(GateGradientTest, StraightThroughIsThatOfSoftk) {
  const auto logits = random_logits(kTokens, kExperts, 24);
  const auto hard = backward(make_gate("topk-hard", kExperts, 3), {.logits = logits.view()});
  const auto soft = backward(make_gate("softk", kExperts, 3), {.logits = logits.view()});
  for (std::size_t i = 0; i < hard.data.size(); ++i) EXPECT_NEAR(hard.data[i], soft.data[i], 1e-15);
}

TEST(GateGradientTest, AddsToWhatIsThere) {
  const auto logits = random_logits(kTokens, kExperts, 25);
  const GateConfig gate = make_gate("softk", kExperts, 3);
  const auto out = route(gate, logits);
  Matrix<double> grad(kTokens, kExperts);
  const auto of = loss_gradient(out);
  gate_backward<double>(gate, {.logits = logits.view()}, out, of, grad.view());
  const auto once = grad.data;
  gate_backward<double>(gate, {.logits = logits.view()}, out, of, grad.view());
  for (std::size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(grad.data[i], 2 * once[i], 1e-15);
}

TEST(GateGradientTest, PassesThroughDropsAndRenormalisation) {
  for (const Renormalise renormalise : {Renormalise::no, Renormalise::to_one, Renormalise::keep_sum}) {
    for (const char* name : {"softk", "pre-softmax"}) {
      SCOPED_TRACE(std::string(name) + " " + std::to_string(static_cast<int>(renormalise)));
      const GateConfig gate = make_gate(name, kExperts, 3);
      Matrix<double> logits = random_logits(kTokens, kExperts, 26);
      const GateInput<double> input{.logits = logits.view()};
      const auto after = [&] {
        const auto out = gate_forward(gate, input);
        return apply_drops(out, plan_capacity<double>(out, {.capacity = 2}), renormalise);
      };
      const auto out = gate_forward(gate, input);
      const auto plan = plan_capacity<double>(out, {.capacity = 2});
      ASSERT_GT(plan.num_dropped, 0);
      const auto grads = apply_drops_backward<double>(out, plan, renormalise, loss_gradient(after()));
      for (std::size_t i = 0; i < grads.size(); ++i) {
        if (plan.places[i] < 0 && renormalise != Renormalise::keep_sum) {
          EXPECT_EQ(grads[i], 0.0);
        }
      }
      Matrix<double> grad(kTokens, kExperts);
      gate_backward<double>(gate, input, out, grads, grad.view());
      expect_gradient(logits, grad, [&] { return loss_of(after()); });
    }
  }
}

TEST(GateGradientTest, Float32FollowsFloat64) {
  const auto wide = random_logits(kTokens, kExperts, 27);
  Matrix<float> narrow(kTokens, kExperts);
  for (std::size_t i = 0; i < wide.data.size(); ++i) narrow.data[i] = static_cast<float>(wide.data[i]);
  const GateConfig gate = make_gate("deepseek-v3", kExperts, 3);
  const auto expected = backward(gate, {.logits = wide.view()});
  const auto out = route(gate, narrow);
  std::vector<float> grads;
  GateOutput<double> as_double{out.num_tokens, out.num_experts, out.top_k, out.ids, {}};
  as_double.weights.assign(out.weights.begin(), out.weights.end());
  for (const double g : loss_gradient(as_double)) grads.push_back(static_cast<float>(g));
  Matrix<float> grad(kTokens, kExperts);
  gate_backward<float>(gate, {.logits = narrow.view()}, out, grads, grad.view());
  for (std::size_t i = 0; i < grad.data.size(); ++i)
    EXPECT_NEAR(static_cast<double>(grad.data[i]), expected.data[i], 1e-6);
}

}  // namespace
}  // namespace shunt

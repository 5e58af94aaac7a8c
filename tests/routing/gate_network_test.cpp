#include <shunt/routing/gate_network.h>

#include <cmath>

#include <gtest/gtest.h>

#include <shunt/routing/losses.h>

#include "expect_error.h"
#include "golden.h"

namespace shunt {
namespace {

using test::expect_error;
using test::expect_gradient;
using test::Matrix;
using test::random_logits;

constexpr GateArch kArchs[] = {GateArch::linear, GateArch::mlp, GateArch::mlp_hadamard, GateArch::cosine};

GateNetwork<double> small(GateArch arch) {
  GateNetwork<double> network({arch, 5, 4, 3}, 9);
  // Biases of 0 would hide that they are read.
  Random random(3);
  for (double& parameter : network.parameters()) parameter += 0.3 * random.normal();
  return network;
}

double probe(const GateNetwork<double>& network, const Matrix<double>& x) {
  Matrix<double> logits(x.rows, 4);
  GateNetwork<double>::Trace trace;
  network.forward(x.view(), logits.view(), trace);
  double sum = 0;
  for (std::size_t i = 0; i < logits.data.size(); ++i)
    sum += std::sin(1.0 + static_cast<double>(i)) * logits.data[i];
  return sum;
}

TEST(GateNetworkTest, ParameterCountsAreThoseOfTheOldSystem) {
  const auto count = [](GateArch arch) { return GateNetwork<float>({arch, 256, 8}, 1).parameters().size(); };
  EXPECT_EQ(count(GateArch::linear), 2056U);
  EXPECT_EQ(count(GateArch::mlp), 33928U);
  EXPECT_EQ(count(GateArch::mlp_hadamard), 133640U);
  // 256 x 256 + 256 + 256 x 8 + 1
  EXPECT_EQ(count(GateArch::cosine), 67841U);
  const GateNetwork<float> network({GateArch::cosine, 256, 8}, 1);
  EXPECT_EQ(network.layout()[2].name, "experts");
  EXPECT_EQ(network.layout()[2].rows, 256);
  EXPECT_EQ(network.layout()[2].cols, 8);
}

TEST(GateNetworkTest, ForwardByHand) {
  const Matrix<double> x(2, {0.5, -2});
  Matrix<double> z(1, 1);
  const auto gelu = [](double v) { return v * (1 + std::erf(v / std::sqrt(2.0))) / 2; };
  const auto run = [&](GateArch arch, const std::vector<double>& parameters) {
    GateNetwork<double> network({arch, 2, 1, 1}, 1);
    EXPECT_EQ(network.parameters().size(), parameters.size());
    network.parameters() = parameters;
    GateNetwork<double>::Trace trace;
    network.forward(x.view(), z.view(), trace);
    return z.data[0];
  };
  EXPECT_NEAR(run(GateArch::linear, {3, 4, 10}), 3 * 0.5 - 8 + 10, 1e-12);
  // h = gelu(0.5 * 1 - 2 * 2 + 3), z = 5 h + 7
  EXPECT_NEAR(run(GateArch::mlp, {1, 2, 3, 5, 7}), 5 * gelu(-0.5) + 7, 1e-12);
  // m = (4 h + 6, 5 h + 8), z = 9 * 0.5 m0 - 2 * 2 m1 + 1
  const double h = gelu(-0.5);
  EXPECT_NEAR(run(GateArch::mlp_hadamard, {1, 2, 3, 4, 5, 6, 8, 9, 2, 1}),
              9 * 0.5 * (4 * h + 6) + 2 * -2 * (5 * h + 8) + 1, 1e-12);
  // One inner element: the cosine is 1 or -1.
  EXPECT_NEAR(run(GateArch::cosine, {1, 2, 3, -0.2, std::log(5.0)}), 5, 1e-12);
  EXPECT_NEAR(run(GateArch::cosine, {1, 2, 3, 0.2, std::log(500.0)}), -100, 1e-9);
}

TEST(GateNetworkTest, CosineLooksAtDirectionsAlone) {
  GateNetwork<double> network = small(GateArch::cosine);
  Matrix<double> x = random_logits(3, 5, 51);
  for (std::int64_t i = 0; i < network.layout()[1].cols; ++i)
    network.parameters()[static_cast<std::size_t>(network.layout()[1].offset + i)] = 0;
  const double before = probe(network, x);
  for (double& value : x.data) value *= 7;
  EXPECT_NEAR(probe(network, x), before, 1e-12);
  Matrix<double> logits(3, 4);
  GateNetwork<double>::Trace trace;
  network.forward(x.view(), logits.view(), trace);
  const double scale = std::exp(network.parameters().back());
  for (const double z : logits.data) EXPECT_LE(std::abs(z), scale + 1e-12);
}

TEST(GateNetworkTest, GradientsAgreeWithFiniteDifferences) {
  for (const GateArch arch : kArchs) {
    SCOPED_TRACE(static_cast<int>(arch));
    GateNetwork<double> network = small(arch);
    Matrix<double> x = random_logits(6, 5, 52);
    Matrix<double> grad_logits(6, 4), logits(6, 4), grad_x(6, 5);
    for (std::size_t i = 0; i < grad_logits.data.size(); ++i)
      grad_logits.data[i] = std::sin(1.0 + static_cast<double>(i));
    GateNetwork<double>::Trace trace;
    network.forward(x.view(), logits.view(), trace);
    std::vector<double> grads(network.parameters().size(), 0.0);
    network.backward(x.view(), trace, grad_logits.view(), grads, grad_x.view());
    expect_gradient(x, grad_x, [&] { return probe(network, x); });
    for (std::size_t i = 0; i < grads.size(); ++i) {
      double& parameter = network.parameters()[i];
      const double at = parameter;
      parameter = at + 1e-5;
      const double above = probe(network, x);
      parameter = at - 1e-5;
      const double below = probe(network, x);
      parameter = at;
      EXPECT_NEAR(grads[i], (above - below) / 2e-5, 1e-6) << "parameter " << i;
    }
    // Without memory for it, the tokens' gradient is left out and the others stay.
    std::vector<double> again(grads.size(), 0.0);
    network.backward(x.view(), trace, grad_logits.view(), again, {});
    EXPECT_EQ(again, grads);
  }
}

TEST(GateNetworkTest, LearnsBalanceFromTheLossAlone) {
  for (const GateArch arch : kArchs) {
    SCOPED_TRACE(static_cast<int>(arch));
    GateNetwork<double> network = small(arch);
    const Matrix<double> x = random_logits(40, 5, 53);
    Matrix<double> logits(40, 4);
    GateNetwork<double>::Trace trace;
    double first = 0, last = 0;
    for (int step = 0; step < 200; ++step) {
      network.forward(x.view(), logits.view(), trace);
      Matrix<double> grad(40, 4);
      last = balance_loss<double>({.top_k = 1}, logits.view(), {}, grad.view());
      if (step == 0) first = last;
      std::vector<double> grads(network.parameters().size(), 0.0);
      network.backward(x.view(), trace, grad.view(), grads, {});
      for (std::size_t i = 0; i < grads.size(); ++i) network.parameters()[i] -= 0.1 * grads[i];
    }
    EXPECT_LT(last - 1, 0.5 * (first - 1)) << first << " to " << last;
  }
}

TEST(GateNetworkTest, NamesWhatIsWrong) {
  expect_error(Errc::invalid_argument, "gate network: 0 elements per token; allowed are 1 to 1048576", [] {
    GateNetwork<float>({GateArch::linear, 0, 4}, 1);
  });
  expect_error(
      Errc::invalid_argument,
      "gate network \"mlp-hadamar\" is not known; did you mean \"mlp-hadamard\"? Allowed are linear, mlp, "
      "mlp-hadamard, cosine",
      [] { (void)parse_gate_arch("mlp-hadamar"); });
  EXPECT_EQ(parse_gate_arch("mlp_hadamard"), GateArch::mlp_hadamard);
  const GateNetwork<double> network({GateArch::mlp, 5, 4, 3}, 9);
  Matrix<double> x(2, 5), logits(2, 4), narrow(2, 3);
  GateNetwork<double>::Trace trace;
  expect_error(Errc::invalid_argument,
               "gate network: tokens [2, 5] and logits [2, 3]; allowed are [T, 5] and [T, 4]",
               [&] { network.forward(x.view(), narrow.view(), trace); });
  std::vector<double> grads(network.parameters().size());
  expect_error(Errc::invalid_argument,
               "gate network: the trace is of 0 inner elements, not of 6; it must be that of forward",
               [&] { network.backward(x.view(), trace, logits.view(), grads, {}); });
}

}  // namespace
}  // namespace shunt

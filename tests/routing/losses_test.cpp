#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include <shunt/routing/losses.h>

#include "expect_error.h"
#include "golden.h"

namespace shunt {
namespace {

using test::expect_error;
using test::expect_gradient;
using test::golden_logits;
using test::largest_of;
using test::Matrix;
using test::random_logits;
using test::route;

constexpr double kDigits = 5e-7;

double value_of(const BalanceLoss& loss, const Matrix<double>& logits,
                std::span<const std::int64_t> counts = {}) {
  return balance_loss<double>(loss, logits.view(), counts, {});
}

TEST(BalanceLossTest, GoldenNumbers) {
  const auto logits = golden_logits<double>();
  EXPECT_NEAR(value_of({.top_k = 2}, logits), 1.262167, kDigits);
  EXPECT_NEAR(value_of({.form = BalanceForm::mixtral, .top_k = 2}, logits), 2.524333, kDigits);
  EXPECT_NEAR(value_of({.form = BalanceForm::gshard, .top_k = 2}, logits), 1.870875, kDigits);
  EXPECT_NEAR(value_of({.coefficient = 0.01, .top_k = 2}, logits), 0.01262167, kDigits);
}

TEST(BalanceLossTest, IsTheCoefficientWhereBalanced) {
  Matrix<double> logits(4, 4);  // each token prefers another expert by as much
  for (std::int64_t t = 0; t < 4; ++t) logits.row(t)[t] = 1;
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus})
    EXPECT_NEAR(value_of({.coefficient = 0.3, .top_k = 1, .score = score}, logits), 0.3, 1e-12);
}

TEST(BalanceLossTest, SequencesAreAveraged) {
  const auto logits = random_logits(12, 5, 41);
  double mean = 0;
  for (std::int64_t s = 0; s < 3; ++s) {
    Matrix<double> part(4, 5);
    std::copy_n(logits.data.begin() + s * 20, 20, part.data.begin());
    mean += value_of({.top_k = 2}, part) / 3;
  }
  EXPECT_NEAR(value_of({.top_k = 2, .sequence_tokens = 4}, logits), mean, 1e-12);
  EXPECT_NE(value_of({.top_k = 2}, logits), mean);
  EXPECT_EQ(value_of({.top_k = 2, .sequence_tokens = 12}, logits), value_of({.top_k = 2}, logits));
}

TEST(BalanceLossTest, GlobalCountsReplaceTheLocalOnes) {
  const auto logits = golden_logits<double>();
  const std::vector<std::int64_t> own = {3, 5, 2, 2}, twice = {6, 10, 4, 4}, even = {9, 9, 9, 9};
  EXPECT_NEAR(value_of({.top_k = 2}, logits, own), 1.262167, kDigits);
  EXPECT_NEAR(value_of({.top_k = 2}, logits, twice), 1.262167, kDigits);
  EXPECT_NEAR(value_of({.top_k = 2}, logits, even), 1.0, 1e-12);
}

TEST(BalanceLossTest, GradientsAgreeWithFiniteDifferences) {
  const std::vector<std::int64_t> global = {10, 0, 7, 30, 3};
  for (const BalanceForm form :
       {BalanceForm::switch_transformer, BalanceForm::mixtral, BalanceForm::gshard}) {
    for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
      for (const std::int64_t sequence : {0, 4}) {
        for (const bool counted : {false, true}) {
          if (counted && sequence > 0) continue;
          Matrix<double> logits = random_logits(8, 5, 42);
          const BalanceLoss loss{form, 0.7, 2, score, sequence};
          const std::span<const std::int64_t> counts =
              counted ? std::span<const std::int64_t>(global) : std::span<const std::int64_t>();
          Matrix<double> grad(8, 5);
          (void)balance_loss<double>(loss, logits.view(), counts, grad.view());
          expect_gradient(logits, grad, [&] { return value_of(loss, logits, counts); });
        }
      }
    }
  }
}

TEST(BalanceLossTest, ReachesTheRouterWithoutATaskLoss) {
  const auto logits = random_logits(8, 5, 43);
  Matrix<double> grad(8, 5);
  // The task's gradient is 0; only the auxiliary loss pulls.
  const auto out = route(make_gate("softk", 5, 2), logits);
  gate_backward<double>(make_gate("softk", 5, 2), {.logits = logits.view()}, out,
                        std::vector<double>(16, 0.0), grad.view());
  EXPECT_EQ(largest_of(grad.data), 0.0);
  (void)balance_loss<double>({.top_k = 2}, logits.view(), {}, grad.view());
  EXPECT_GT(largest_of(grad.data), 1e-3);
}

TEST(BalanceLossTest, StepsAgainstTheGradientBalance) {
  auto logits = random_logits(100, 4, 44);
  for (std::int64_t t = 0; t < 100; ++t) logits.row(t)[0] += 2;
  // One bias per expert stands for a router; it learns from the loss alone.
  const double before = value_of({.top_k = 1}, logits);
  for (int step = 0; step < 400; ++step) {
    Matrix<double> grad(100, 4);
    (void)balance_loss<double>({.top_k = 1}, logits.view(), {}, grad.view());
    for (std::size_t e = 0; e < 4; ++e) {
      double sum = 0;
      for (std::size_t t = 0; t < 100; ++t) sum += grad.data[t * 4 + e];
      for (std::size_t t = 0; t < 100; ++t) logits.data[t * 4 + e] -= 0.05 * sum;
    }
  }
  EXPECT_GT(before, 1.2);
  EXPECT_LT(value_of({.top_k = 1}, logits), 1.02);
}

TEST(CompatVarianceTest, GoldenNumber) {
  const std::vector<std::int64_t> counts = {3, 5, 2, 2};
  EXPECT_NEAR(compat_variance_loss(1, counts), .041667, kDigits);
  EXPECT_EQ(compat_variance_loss(1, std::vector<std::int64_t>(4, 0)), 0.0);
}

// The old system's loss as it stands in its training step: counts of the choice. It does not move with the logits, so
// nothing can be learnt from it.
TEST(CompatVarianceTest, HasNoGradient) {
  Matrix<double> logits = random_logits(8, 5, 45);
  const GateConfig gate = make_gate("compat-softk", 5, 2);
  expect_gradient(
      logits, Matrix<double>(8, 5),
      [&] { return compat_variance_loss(1, expert_counts(route(gate, logits))); }, 0.0);
  EXPECT_GT(compat_variance_loss(1, expert_counts(route(gate, logits))), 0.0);
  // The same counts in a loss that also has probabilities do move.
  Matrix<double> grad(8, 5);
  (void)balance_loss<double>({.top_k = 2}, logits.view(), expert_counts(route(gate, logits)), grad.view());
  EXPECT_GT(largest_of(grad.data), 1e-3);
}

TEST(ZLossTest, GoldenNumberAndGradient) {
  EXPECT_NEAR(z_loss<double>(1, golden_logits<double>().view(), {}), 8.190959, kDigits);
  EXPECT_NEAR(z_loss<float>(1, golden_logits<float>().view(), {}), 8.190959, 1e-5);
  Matrix<double> logits = random_logits(6, 5, 46);
  Matrix<double> grad(6, 5);
  (void)z_loss<double>(0.4, logits.view(), grad.view());
  EXPECT_GT(largest_of(grad.data), 1e-3);
  expect_gradient(logits, grad, [&] { return z_loss<double>(0.4, logits.view(), {}); });
}

TEST(ImportanceLoadTest, GradientAgreesWithFiniteDifferences) {
  Matrix<double> logits = random_logits(9, 5, 47);
  Matrix<double> noise(9, 5);
  add_logit_noise<double>(noise.view(), 0.8, 3);
  const auto value = [&](View2<double> grad) {
    Matrix<double> noisy = logits;
    for (std::size_t i = 0; i < noisy.data.size(); ++i) noisy.data[i] += noise.data[i];
    return importance_load_loss<double>(0.9, 2, 0.8, logits.view(), noisy.view(), grad);
  };
  Matrix<double> grad(9, 5);
  EXPECT_GT(value(grad.view()), 0.0);
  EXPECT_GT(largest_of(grad.data), 1e-3);
  expect_gradient(logits, grad, [&] { return value({}); });
}

TEST(ImportanceLoadTest, IsTheSumOfBothVariations) {
  // Without much noise the load is the count of choices; one expert gets all of it.
  Matrix<double> logits(6, 3);
  for (std::int64_t t = 0; t < 6; ++t) logits.row(t)[1] = 5;
  const double p1 = std::exp(5.0) / (std::exp(5.0) + 2), p0 = 1 / (std::exp(5.0) + 2);
  const double mean = 1.0 / 3;
  const double importance = ((p1 - mean) * (p1 - mean) + 2 * (p0 - mean) * (p0 - mean)) / 3 / (mean * mean);
  const double load = ((1 - mean) * (1 - mean) + 2 * mean * mean) / 3 / (mean * mean);
  EXPECT_NEAR(importance_load_loss<double>(2, 1, 0.01, logits.view(), logits.view(), {}), importance + load,
              1e-6);
}

TEST(LossErrorTest, NamesWhatIsWrong) {
  auto logits = golden_logits<double>();
  const auto refused = [](const std::string& message, const std::function<void()>& body) {
    expect_error(Errc::invalid_argument, message, body);
  };
  refused("balance loss: top-k 5 is outside [1, 4], the number of experts",
          [&] { (void)value_of({.top_k = 5}, logits); });
  refused("balance loss: sequences of 4 tokens do not divide 6 tokens",
          [&] { (void)value_of({.sequence_tokens = 4}, logits); });
  const std::vector<std::int64_t> zero(4, 0), negative = {1, -1, 3, 4};
  refused("balance loss: all counts are 0; the global batch must have choices",
          [&] { (void)value_of({}, logits, zero); });
  refused("balance loss: the count of expert 1 is -1; it must be >= 0",
          [&] { (void)value_of({}, logits, negative); });
  refused("importance and load loss: noise deviation 0 is not a finite number > 0",
          [&] { (void)importance_load_loss<double>(1, 1, 0, logits.view(), logits.view(), {}); });
  refused("balance loss \"swich\" is not known; did you mean \"switch\"? Allowed are switch, mixtral, gshard",
          [] { (void)parse_balance_form("swich"); });
  logits.row(2)[3] = std::numeric_limits<double>::quiet_NaN();
  refused("z-loss: the logit of token 2, expert 3 is nan; logits must be finite",
          [&] { (void)z_loss<double>(1, logits.view(), {}); });
  refused("balance loss: the logit of token 2, expert 3 is nan; logits must be finite",
          [&] { (void)value_of({}, logits); });
}

}  // namespace
}  // namespace shunt

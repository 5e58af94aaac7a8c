#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include <shunt/core/view.h>
#include <shunt/routing/gate.h>

namespace shunt {

// Losses return their value and add their gradient by the logits to `grad_logits` [T, E]; a view without data asks for
// the value alone. Sums over tokens are made in double, in token order. All raise Errc::invalid_argument on shapes, on
// logits that are not finite (naming token and expert), and on coefficients that are not finite.

enum class BalanceForm : std::uint8_t {
  switch_transformer,  ///< c E sum_e f_e p_e with f over all K choices: Switch, Megatron, MegaBlocks
  mixtral,             ///< K times that: Hugging Face
  gshard,              ///< f over the first choices only: GShard, Tutel
};
/// Names switch, mixtral, gshard.
/// Errors: Errc::invalid_argument on an unknown name, with the nearest one.
[[nodiscard]] BalanceForm parse_balance_form(std::string_view name);

/// f_e is the share of all choices that fall on expert e, p_e the mean over tokens of its probability P_te.
struct BalanceLoss {
  BalanceForm form = BalanceForm::switch_transformer;
  double coefficient = 1.0;
  std::int32_t top_k = 1;
  Score score =
      Score::softmax;  ///< P: softmax over experts; sigmoid, sqrt_softplus: divided by the token's sum
  std::int64_t sequence_tokens =
      0;  ///< Tokens of a sequence: the loss of each, averaged; 0: all tokens together
};

/// The auxiliary loss that pulls tokens from busy experts. Gradients flow through p only; f is a count.
/// `counts` [E]: choices (gshard: first choices) of the global batch, for the global scope; empty: a plain top-k of the
/// logits here, without bias, groups or drops, as Megatron counts.
/// Errors: also top-k outside [1, E], a sequence length that does not divide T, counts together with sequences, counts
///         that are negative or all 0.
/// Source: arXiv 2101.03961 eq. 4; 2006.16668 alg. 1; global scope 2501.11873.
template <class Real>
double balance_loss(const BalanceLoss& loss, View2<const Real> logits, std::span<const std::int64_t> counts,
                    View2<Real> grad_logits);

/// coefficient * mean_t (ln sum_e exp z_te)^2, which keeps logits small (ST-MoE).
template <class Real>
double z_loss(double coefficient, View2<const Real> logits, View2<Real> grad_logits);

/// coefficient / 2 * (CV(importance)^2 + CV(load)^2) with population variances: importance_e = sum_t P_te, load_e = sum_t
/// Phi((z_te - threshold_te) / deviation), where the threshold is the K-th largest noisy logit of the token without
/// expert e, and gradients flow through it too. `noisy` is `logits` plus noise of that deviation (add_logit_noise).
/// Tutel compares a probability with a logit here.
/// Errors: also deviation <= 0, K >= E.
/// Source: arXiv 2106.05974 (V-MoE), appendix A. Shazeer et al. (1701.06538) sum the sparse noisy weights as importance and
///         weigh the two parts apart.
template <class Real>
double importance_load_loss(double coefficient, std::int32_t top_k, double deviation,
                            View2<const Real> logits, View2<const Real> noisy, View2<Real> grad_logits);

/// alpha * sum_e (c_e / sum c - 1/E)^2 of kept counts, as moe-routing-bench adds it to its loss (compat-variance). Counts
/// are integers, so it has no gradient and balances nothing: there is none to return. 0 where all counts are 0.
[[nodiscard]] double compat_variance_loss(double alpha, std::span<const std::int64_t> counts);

}  // namespace shunt

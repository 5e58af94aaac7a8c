#include "gate_step.h"

#include <algorithm>

#include <shunt/layer/matmul.h>

#include "activations.h"
#include "workers.h"

namespace shunt::detail {
namespace {

/// Tokens of one task. What a token gets does not depend on it.
constexpr std::int64_t kTokens = 128;
/// Rows of the linear network's gradient of one task.
constexpr std::int64_t kWeightRows = 64;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

std::int64_t blocks(std::int64_t all, std::int64_t of) {
  return (all + of - 1) / of;
}

}  // namespace

GateStep::GateStep(const MoeLayerConfig& config, Workers& workers)
    : network({.arch = config.arch,
               .hidden = config.hidden,
               .num_experts = config.gate.num_experts,
               .inner = config.gate_inner},
              config.seed),
      config_(config),
      workers_(workers) {}

GateInput<float> GateStep::gate_input(const MoeInput& input, std::span<const float> bias) const {
  return {.logits = {logits.data(), tokens_, config_.gate.num_experts},
          .bias = bias,
          .token_ids = input.token_ids};
}

View2<float> GateStep::view(std::vector<float>& of, std::int64_t cols) const {
  return {of.data(), tokens_, cols};
}

BalanceLoss GateStep::balance_of() const {
  return {.form = config_.balance_form,
          .coefficient = config_.balance,
          .top_k = config_.gate.top_k,
          .score = config_.gate.score == Score::logit ? Score::softmax : config_.gate.score};
}

void GateStep::make_logits() {
  const std::int64_t h = config_.hidden, e = config_.gate.num_experts;
  traces_.resize(at(blocks(tokens_, kTokens)));
  workers_.run(blocks(tokens_, kTokens), [&](std::int64_t block, int) {
    const std::int64_t first = block * kTokens, count = std::min(kTokens, tokens_ - first);
    const float* const parameters = network.parameters().data();
    const auto& layout = network.layout();
    if (config_.arch == GateArch::linear)
      // Our own product: a token's logits do not depend on how many tokens there are.
      matmul({.m = count,
              .n = e,
              .k = h,
              .a = x_.data() + first * h,
              .a_stride = h,
              .b = parameters + layout[0].offset,
              .b_stride = e,
              .c = logits.data() + first * e,
              .c_stride = e,
              .bias = parameters + layout[1].offset},
             MatmulBackend::own);
    else
      network.forward({x_.data() + first * h, count, h}, {logits.data() + first * e, count, e},
                      traces_[at(block)]);
  });
}

double GateStep::forward(const MoeInput& input, std::span<const float> bias) {
  tokens_ = input.tokens.rows;
  const std::int64_t h = config_.hidden, e = config_.gate.num_experts;
  x_.resize(at(tokens_ * h));
  logits.resize(at(tokens_ * e));
  workers_.run(blocks(tokens_, kTokens), [&](std::int64_t block, int) {
    for (std::int64_t t = block * kTokens; t < std::min(tokens_, (block + 1) * kTokens); ++t)
      to_f32(config_.dtype, input.tokens.row(t), h, x_.data() + t * h);
  });
  if (config_.jitter > 0) apply_jitter<float>(view(x_, h), config_.jitter, input.noise_seed);
  make_logits();
  if (config_.logit_noise > 0) add_logit_noise<float>(view(logits, e), config_.logit_noise, input.noise_seed);
  chosen = gate_forward<float>(config_.gate, gate_input(input, bias));
  CapacityOptions options{
      .mode = config_.capacity_mode, .order = config_.drop_order, .alignment = kRowAlignment};
  if (options.mode != CapacityMode::dropless) {
    const std::vector<std::int64_t> counts = expert_counts(chosen);
    const std::int64_t most =
        std::max<std::int64_t>(1, counts.empty() ? 0 : *std::max_element(counts.begin(), counts.end()));
    // Of no tokens no formula makes a capacity.
    options.capacity = tokens_ == 0 ? 1
                                    : expert_capacity(config_.capacity, tokens_, config_.gate.top_k,
                                                      config_.gate.num_experts, most);
  }
  plan = plan_capacity<float>(chosen, options);
  kept = apply_drops(chosen, plan, config_.renormalise);
  double loss = 0;
  const View2<const float> all{logits.data(), tokens_, e};
  if (config_.balance != 0 && tokens_ > 0) loss += balance_loss<float>(balance_of(), all, {}, {});
  if (config_.z_loss != 0 && tokens_ > 0) loss += z_loss<float>(config_.z_loss, all, {});
  return loss;
}

void GateStep::backward(const MoeInput& input, std::span<const float> bias,
                        std::span<const float> grad_weights, float* grad_x, std::span<float> grad_router) {
  const std::int64_t h = config_.hidden, e = config_.gate.num_experts;
  grad_logits_.assign(at(tokens_ * e), 0.0F);
  const std::vector<float> grad_chosen =
      apply_drops_backward<float>(chosen, plan, config_.renormalise, grad_weights);
  gate_backward<float>(config_.gate, gate_input(input, bias), chosen, grad_chosen, view(grad_logits_, e));
  const View2<const float> all{logits.data(), tokens_, e};
  if (config_.balance != 0 && tokens_ > 0)
    (void)balance_loss<float>(balance_of(), all, {}, view(grad_logits_, e));
  if (config_.z_loss != 0 && tokens_ > 0) (void)z_loss<float>(config_.z_loss, all, view(grad_logits_, e));

  std::fill(grad_x, grad_x + tokens_ * h, 0.0F);
  if (config_.arch != GateArch::linear) {
    // Gradients of parameters add up block by block, in token order.
    for (std::int64_t block = 0; block < blocks(tokens_, kTokens); ++block) {
      const std::int64_t first = block * kTokens, count = std::min(kTokens, tokens_ - first);
      network.backward({x_.data() + first * h, count, h}, traces_[at(block)],
                       {grad_logits_.data() + first * e, count, e}, grad_router,
                       {grad_x + first * h, count, h});
    }
  } else {
    const ParameterSlice& weights = network.layout()[0];
    const ParameterSlice& biases = network.layout()[1];
    workers_.run(blocks(tokens_, kTokens), [&](std::int64_t block, int) {
      const std::int64_t first = block * kTokens, count = std::min(kTokens, tokens_ - first);
      matmul({.m = count,
              .n = h,
              .k = e,
              .a = grad_logits_.data() + first * e,
              .a_stride = e,
              .b = network.parameters().data() + weights.offset,
              .b_stride = e,
              .b_transposed = true,
              .c = grad_x + first * h,
              .c_stride = h},
             MatmulBackend::own);
    });
    workers_.run(blocks(h, kWeightRows), [&](std::int64_t block, int) {
      const std::int64_t first = block * kWeightRows;
      matmul({.m = std::min(kWeightRows, h - first),
              .n = e,
              .k = tokens_,
              .a = x_.data() + first,
              .a_stride = h,
              .a_transposed = true,
              .b = grad_logits_.data(),
              .b_stride = e,
              .c = grad_router.data() + weights.offset + first * e,
              .c_stride = e,
              .accumulate = true},
             MatmulBackend::own);
    });
    for (std::int64_t t = 0; t < tokens_; ++t)
      add_row(DType::f32, grad_logits_.data() + t * e, e, 1.0F, grad_router.data() + biases.offset);
  }
  if (config_.jitter > 0) apply_jitter<float>({grad_x, tokens_, h}, config_.jitter, input.noise_seed);
}

}  // namespace shunt::detail

#include <shunt/layer/moe_layer.h>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/layout/partition.h>
#include <shunt/transport/transport.h>

#include "activations.h"
#include "layer_impl.h"

namespace shunt {
namespace {

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Errc::invalid_argument, "layer: " + fmt::format(text, std::forward<Args>(args)...));
}

const MoeLayerConfig& checked(const MoeLayerConfig& config, const Transport* transport) {
  check_gate(config.gate);
  constexpr int kMostThreads = 1024;
  if (config.threads < 1 || config.threads > kMostThreads)
    refuse("{} threads; allowed are 1 to {}", config.threads, kMostThreads);
  if (config.shared_experts < 0 || config.shared_experts > 1024)
    refuse("{} shared experts; allowed are 0 to 1024", config.shared_experts);
  if (config.dtype != DType::f32 && config.dtype != DType::bf16)
    refuse("dtype {}; allowed are float32 and bfloat16", dtype_name(config.dtype));
  if (!(config.jitter >= 0 && config.jitter < 1)) refuse("jitter {}; allowed is [0, 1)", config.jitter);
  for (const auto& [name, value] : {std::pair{"logit noise", config.logit_noise},
                                    {"coefficient of the balance loss", config.balance},
                                    {"coefficient of the z-loss", config.z_loss}})
    if (!(std::isfinite(value) && value >= 0)) refuse("{} {}; allowed are finite numbers >= 0", name, value);
  if (config.capacity_mode != CapacityMode::dropless)
    (void)expert_capacity(config.capacity, config.gate.num_experts, config.gate.top_k,
                          config.gate.num_experts, 1);
  if (transport == nullptr) return config;
  if (config.max_tokens < 1) refuse("max_tokens {}; between ranks at least 1 is needed", config.max_tokens);
  if (config.gate.selection == Selection::compat_hash)
    refuse("gate {} may choose an expert twice for a token, which cannot cross between ranks",
           config.gate.name);
  if (config.gate.num_experts >= 1 << 24)
    refuse("{} experts; between ranks fewer than 2^24 are allowed", config.gate.num_experts);
  return config;
}

ExpertFfnConfig experts_of(const MoeLayerConfig& config, const Transport* transport) {
  const ExpertPartition partition{config.gate.num_experts,
                                  transport == nullptr ? 1 : transport->world().size};
  const std::int32_t rank = transport == nullptr ? 0 : transport->world().rank;
  return {.hidden = config.hidden,
          .ffn = config.ffn,
          .num_experts = partition.count(rank),
          .first_expert = partition.first(rank),
          .activation = config.activation,
          .bias = config.bias,
          .dtype = config.dtype,
          .backend = config.backend};
}

}  // namespace

MoeLayer::Impl::Impl(const MoeLayerConfig& config_in, Transport* transport)
    : config(checked(config_in, transport)), workers(config.threads), gate(config, workers) {
  experts.emplace(experts_of(config, transport), config.seed, workers);
  if (config.shared_experts > 0) {
    ExpertFfnConfig of = experts_of(config, nullptr);
    of.ffn = config.ffn * config.shared_experts;
    of.num_experts = 1;
    of.first_expert = config.gate.num_experts;
    shared.emplace(of, config.seed, workers);
  }
  exchange = transport == nullptr ? detail::make_local_exchange(config, workers)
                                  : detail::make_rank_exchange(config, workers, *transport);
}

MoeLayer::MoeLayer(const MoeLayerConfig& config, Transport* transport)
    : impl_(std::make_unique<Impl>(config, transport)) {}
MoeLayer::~MoeLayer() = default;

const MoeLayerConfig& MoeLayer::config() const noexcept {
  return impl_->config;
}
GateNetwork<float>& MoeLayer::router() noexcept {
  return impl_->gate.network;
}
ExpertFfn& MoeLayer::experts() noexcept {
  return *impl_->experts;
}
ExpertFfn* MoeLayer::shared() noexcept {
  return impl_->shared ? &*impl_->shared : nullptr;
}
std::vector<float>& MoeLayer::gate_bias() noexcept {
  return impl_->gate_bias;
}
const MoeStep& MoeLayer::step() const noexcept {
  return impl_->step;
}
std::span<const float> MoeLayer::logits() const noexcept {
  return impl_->gate.logits;
}
const GateOutput<float>& MoeLayer::chosen() const noexcept {
  return impl_->gate.chosen;
}
const GateOutput<float>& MoeLayer::kept() const noexcept {
  return impl_->gate.kept;
}
const CapacityPlan& MoeLayer::plan() const noexcept {
  return impl_->gate.plan;
}

void MoeLayer::Impl::add_shared(bool add) {
  constexpr std::int64_t kTokens = 128;
  const std::int64_t tokens = input.tokens.rows, h = config.hidden;
  const Rows from(shared_rows.data(), tokens, h, config.dtype);
  auto* const to = reinterpret_cast<float*>(sum.at_least(tokens * h * 4));
  workers.run((tokens + kTokens - 1) / kTokens, [&](std::int64_t block, int) {
    for (std::int64_t t = block * kTokens; t < std::min(tokens, (block + 1) * kTokens); ++t) {
      if (add)
        detail::add_row(config.dtype, from.row(t), h, 1.0F, to + t * h);
      else
        detail::to_f32(config.dtype, from.row(t), h, to + t * h);
    }
  });
}

void MoeLayer::forward(const MoeInput& input, const MutableRows& out) {
  Impl& of = *impl_;
  const MoeLayerConfig& config = of.config;
  const std::int64_t tokens = input.tokens.rows;
  if (tokens < 0 || (tokens > 0 && (input.tokens.hidden != config.hidden || out.hidden != config.hidden)))
    refuse("tokens [{}, {}] to results of {} elements; the layer has {} elements per token", tokens,
           input.tokens.hidden, out.hidden, config.hidden);
  if (tokens > 0 && (input.tokens.dtype != config.dtype || out.dtype != config.dtype))
    refuse("tokens of {} to results of {}; the layer is of {}", dtype_name(input.tokens.dtype),
           dtype_name(out.dtype), dtype_name(config.dtype));
  if (out.rows != tokens) refuse("{} tokens to {} results", tokens, out.rows);
  of.ran_forward = false;
  of.step = {};
  of.input = input;
  detail::Lap lap;
  of.step.aux_loss = of.gate.forward(input, of.gate_bias);
  of.step.num_dropped = of.gate.plan.num_dropped;
  of.step.drop_rate = of.gate.plan.drop_rate();
  lap.end(of.step.route_ms);
  of.exchange->dispatch(input.tokens, of.gate.kept, of.gate.plan);
  lap.end(of.step.dispatch_ms);
  const ExpertRows rows = of.exchange->layout();
  for (const std::int64_t count : rows.counts) of.step.num_rows += count;
  of.experts->forward(of.exchange->rows(), rows, of.exchange->results());
  float* start = nullptr;
  if (of.shared) {
    of.shared_counts[0] = tokens;
    const MutableRows to(of.shared_rows.at_least(tokens * config.hidden * dtype_bytes(config.dtype)), tokens,
                         config.hidden, config.dtype);
    of.shared->forward(input.tokens, of.shared_layout(), to);
    of.add_shared(false);
    start = reinterpret_cast<float*>(of.sum.data());
  }
  lap.end(of.step.ffn_ms);
  of.exchange->combine(of.gate.kept.weights.data(), start, out);
  lap.end(of.step.combine_ms);
  of.ran_forward = true;
}

}  // namespace shunt

#include "layer_work.h"

#include <algorithm>
#include <functional>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>

namespace shunt::bench {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

Rows rows_of(const LayerPoint& point, const std::vector<std::byte>& of) {
  return {of.data(), point.tokens, point.hidden, point.dtype};
}

MutableRows rows_of(const LayerPoint& point, std::vector<std::byte>& of) {
  return {of.data(), point.tokens, point.hidden, point.dtype};
}

/// Whether float32 and double choose the same K experts for a token, whatever the order of their sums.
bool clear_choice(const LayerPoint& point, const std::vector<float>& router, const std::byte* x) {
  constexpr float kLeast = 1e-3F;
  const std::int64_t e = point.num_experts;
  std::vector<float> z(router.begin() + static_cast<std::ptrdiff_t>(point.hidden * e), router.end());
  for (std::int64_t h = 0; h < point.hidden; ++h) {
    const float element = load_element(point.dtype, x, h);
    const float* const weights = router.data() + h * e;
    for (std::int64_t i = 0; i < e; ++i) z[at(i)] += element * weights[i];
  }
  std::sort(z.begin(), z.end(), std::greater<>());
  // The order inside the choice is compared too.
  for (std::int64_t i = 0; i < std::min<std::int64_t>(point.top_k, e - 1); ++i)
    if (z[at(i)] - z[at(i + 1)] < kLeast) return false;
  return true;
}

}  // namespace

MoeLayerConfig layer_config(const LayerPoint& point) {
  MoeLayerConfig config;
  config.hidden = point.hidden;
  config.ffn = point.inner();
  config.gate = make_gate(point.gate, point.num_experts, point.top_k);
  config.activation = parse_activation(point.activation);
  config.bias = point.bias;
  config.shared_experts = point.shared_experts;
  config.dtype = point.dtype;
  if (point.capacity_factor > 0) {
    config.capacity_mode = CapacityMode::drop;
    config.capacity.factor = point.capacity_factor;
  }
  config.threads = point.threads;
  config.backend = parse_matmul_backend(point.backend);
  config.seed = point.seed;
  config.max_tokens = point.tokens;
  return config;
}

LayerData::LayerData(const LayerPoint& point, std::int32_t rank, MoeLayer& layer) {
  const std::int64_t row = point.hidden * dtype_bytes(point.dtype);
  for (std::vector<std::byte>* of : {&x, &by, &out, &grad_x}) of->resize(at(point.tokens * row));
  const bool by_logits = point.gate == "softk";
  constexpr int kTries = 64;
  for (std::int64_t t = 0; t < point.tokens; ++t) {
    Random random(point.seed, static_cast<std::uint64_t>(rank) << 40 | static_cast<std::uint64_t>(t));
    const auto draw = [&](std::vector<std::byte>& of) {
      for (std::int64_t h = 0; h < point.hidden; ++h)
        store_element(point.dtype, of.data(), t * point.hidden + h, static_cast<float>(random.normal()));
    };
    int tries = 0;
    do draw(x);
    while (by_logits && ++tries < kTries &&
           !clear_choice(point, layer.router().parameters(), x.data() + t * row));
    draw(by);
  }
}

void run_forward(MoeLayer& layer, const LayerPoint& point, LayerData& data) {
  layer.forward({.tokens = rows_of(point, std::as_const(data.x))}, rows_of(point, data.out));
}

void run_backward(MoeLayer& layer, const LayerPoint& point, LayerData& data) {
  layer.backward(rows_of(point, std::as_const(data.by)), rows_of(point, data.grad_x), data.gradients);
}

std::unique_ptr<TorchWork> make_torch_layer(const LayerPoint& point, MoeLayer& layer, LayerData& data) {
  const TorchTable& table = torch_plugin();
  data.gradients.router.resize(layer.router().parameters().size());
  data.gradients.experts.resize(layer.experts().parameters().size());
  data.gradients.shared.resize(layer.shared() == nullptr ? 0 : layer.shared()->parameters().size());
  const char* error = nullptr;
  std::unique_ptr<TorchWork> work(
      table.make_layer({.tokens = point.tokens,
                        .hidden = point.hidden,
                        .ffn = point.inner(),
                        .num_experts = point.num_experts,
                        .top_k = point.top_k,
                        .shared_experts = point.shared_experts,
                        .activation = static_cast<std::int32_t>(layer.config().activation),
                        .bias = point.bias,
                        .backward = point.backward,
                        .dtype = point.dtype,
                        .x = data.x.data(),
                        .grad_out = data.by.data(),
                        .router = layer.router().parameters().data(),
                        .experts = layer.experts().parameters().data(),
                        .shared = layer.shared() == nullptr ? nullptr : layer.shared()->parameters().data(),
                        .out = data.out.data(),
                        .grad_x = data.grad_x.data(),
                        .grad_router = data.gradients.router.data(),
                        .grad_experts = data.gradients.experts.data(),
                        .grad_shared = data.gradients.shared.data(),
                        .threads = point.threads},
                       error));
  if (work == nullptr)
    throw Error(Errc::unavailable, fmt::format("libtorch cannot make this layer: {}", error));
  return work;
}

void run_torch(TorchWork& work, std::int32_t step) {
  if (const char* said = work.run(step); said != nullptr)
    throw Error(Errc::unavailable, fmt::format("libtorch cannot run this layer: {}", said));
}

}  // namespace shunt::bench

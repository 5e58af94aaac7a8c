#include <algorithm>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/layer/moe_layer.h>

#include "layer_impl.h"

namespace shunt {

void MoeLayer::backward(const Rows& grad_out, const MutableRows& grad_x, MoeGradients& gradients,
                        bool accumulate) {
  Impl& of = *impl_;
  const MoeLayerConfig& config = of.config;
  const std::int64_t tokens = of.input.tokens.rows, h = config.hidden;
  if (!of.ran_forward)
    throw Error(Errc::invalid_state, "layer: backward needs a forward before it, and one for each");
  if (grad_out.rows != tokens || grad_x.rows != tokens ||
      (tokens > 0 && (grad_out.hidden != h || grad_x.hidden != h || grad_out.dtype != config.dtype ||
                      grad_x.dtype != config.dtype)))
    throw Error(Errc::invalid_argument,
                fmt::format("layer: gradients [{}, {}] of {} to [{}, {}] of {}; needed are [{}, {}] of {}",
                            grad_out.rows, grad_out.hidden, dtype_name(grad_out.dtype), grad_x.rows,
                            grad_x.hidden, dtype_name(grad_x.dtype), tokens, h, dtype_name(config.dtype)));
  of.ran_forward = false;
  const auto prepare = [accumulate](std::vector<float>& gradient, std::size_t size, bool adds_always) {
    if (!accumulate && (adds_always || gradient.size() != size))
      gradient.assign(size, 0.0F);
    else if (gradient.size() != size)
      throw Error(Errc::invalid_argument,
                  fmt::format("layer: gradients of {} parameters are to be added to, but there are {}",
                              gradient.size(), size));
  };
  prepare(gradients.router, of.gate.network.parameters().size(), true);
  prepare(gradients.experts, of.experts->parameters().size(), false);
  prepare(gradients.shared, of.shared ? of.shared->parameters().size() : 0, false);

  detail::Lap lap;
  of.exchange->redispatch(grad_out);
  lap.end(of.step.back_dispatch_ms);
  const ExpertRows rows = of.exchange->layout();
  std::vector<float> dots(static_cast<std::size_t>(rows.total));
  of.experts->backward(of.exchange->rows(), rows, of.exchange->gradient_rows(), of.exchange->row_weights(),
                       of.exchange->results(), dots.data(), gradients.experts, accumulate);
  if (of.shared)
    of.shared->backward(of.input.tokens, of.shared_layout(), grad_out, nullptr,
                        {of.shared_rows.data(), tokens, h, config.dtype}, nullptr, gradients.shared,
                        accumulate);
  lap.end(of.step.back_ffn_ms);
  std::vector<float> grad_weights(of.gate.kept.ids.size());
  of.exchange->weight_gradients(dots.data(), grad_weights);
  auto* const sum = reinterpret_cast<float*>(of.sum.at_least(tokens * h * 4));
  of.gate.backward(of.input, of.gate_bias, grad_weights, sum, gradients.router);
  if (of.shared) of.add_shared(true);
  lap.end(of.step.back_route_ms);
  of.exchange->combine(nullptr, sum, grad_x);
  lap.end(of.step.back_combine_ms);
}

}  // namespace shunt

#include <shunt/routing/gate_network.h>

#include <algorithm>
#include <cmath>
#include <string>

#include <shunt/core/nearest.h>
#include <shunt/core/random.h>

#include "scores.h"
#include "streams.h"

namespace shunt {
namespace {

using detail::at;
using detail::kInvSqrt2;
using detail::kInvSqrt2Pi;
using detail::refuse;

constexpr double kLargestTheta = 4.60517018598809136804;  // ln 100

/// A layer inside the flat parameters: weights [in, out], then a bias [out].
struct Affine {
  std::int64_t weight, bias, in, out;
};

template <class Real>
Real gelu(Real x) {
  return x * Real(0.5) * std::erfc(-x * static_cast<Real>(kInvSqrt2));
}
template <class Real>
Real gelu_slope(Real x) {
  return Real(0.5) * std::erfc(-x * static_cast<Real>(kInvSqrt2)) +
         x * static_cast<Real>(kInvSqrt2Pi) * std::exp(-x * x / 2);
}

/// y = x W + b of one token.
template <class Real>
void apply(const Affine& layer, const std::vector<Real>& parameters, const Real* x, Real* y) {
  std::copy_n(parameters.data() + layer.bias, layer.out, y);
  const Real* w = parameters.data() + layer.weight;
  for (std::int64_t i = 0; i < layer.in; ++i, w += layer.out)
    for (std::int64_t o = 0; o < layer.out; ++o) y[o] += x[i] * w[o];
}

/// Adds what `gy` says of weights, bias and, unless null, x.
template <class Real>
void apply_backward(const Affine& layer, const std::vector<Real>& parameters, const Real* x, const Real* gy,
                    std::span<Real> grad, Real* gx) {
  Real* gb = grad.data() + layer.bias;
  for (std::int64_t o = 0; o < layer.out; ++o) gb[o] += gy[o];
  const Real* w = parameters.data() + layer.weight;
  Real* gw = grad.data() + layer.weight;
  for (std::int64_t i = 0; i < layer.in; ++i, w += layer.out, gw += layer.out) {
    Real sum = 0;
    for (std::int64_t o = 0; o < layer.out; ++o) {
      gw[o] += x[i] * gy[o];
      sum += w[o] * gy[o];
    }
    if (gx != nullptr) gx[i] += sum;
  }
}

template <class Real>
Real length(const Real* x, std::int64_t n, std::int64_t stride = 1) {
  Real sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += x[i * stride] * x[i * stride];
  // As torch.nn.functional.normalize: what has no direction does not become infinite.
  return std::max(std::sqrt(sum), Real(1e-12));
}

std::int64_t inner_of(const GateNetworkConfig& config) {
  if (config.inner > 0) return config.inner;
  switch (config.arch) {
    case GateArch::linear:
      return 0;
    case GateArch::mlp:
      return std::max<std::int64_t>(64, config.hidden / 2);
    case GateArch::mlp_hadamard:
      return config.hidden;
    case GateArch::cosine:
      return 256;
  }
  return 0;
}

Affine layer_of(const std::vector<ParameterSlice>& layout, std::size_t first) {
  return {layout[first].offset, layout[first + 1].offset, layout[first].rows, layout[first].cols};
}

}  // namespace

GateArch parse_gate_arch(std::string_view name) {
  const std::vector<std::string> known = {"linear", "mlp", "mlp-hadamard", "cosine"};
  std::string wanted(name);
  std::replace(wanted.begin(), wanted.end(), '_', '-');
  for (std::size_t i = 0; i < known.size(); ++i)
    if (wanted == known[i]) return static_cast<GateArch>(i);
  refuse("gate network \"{}\" is not known; {}", name, allowed_names(wanted, known));
}

template <class Real>
std::int64_t GateNetwork<Real>::add(const char* name, std::int64_t rows, std::int64_t cols) {
  const auto offset = static_cast<std::int64_t>(parameters_.size());
  layout_.push_back({name, offset, rows, cols});
  parameters_.resize(at(offset + rows * cols), Real(0));
  return offset;
}

template <class Real>
GateNetwork<Real>::GateNetwork(const GateNetworkConfig& config, std::uint64_t seed) : config_(config) {
  constexpr std::int64_t kMost = std::int64_t{1} << 20;
  if (config.hidden < 1 || config.hidden > kMost)
    refuse("gate network: {} elements per token; allowed are 1 to {}", config.hidden, kMost);
  if (config.num_experts < 1 || config.num_experts > kMost)
    refuse("gate network: {} experts; allowed are 1 to {}", config.num_experts, kMost);
  if (config.inner < 0 || config.inner > kMost)
    refuse("gate network: {} inner elements; allowed are 0 (as the architecture has it) to {}", config.inner,
           kMost);
  config_.inner = inner_of(config);
  const std::int64_t d = config_.hidden, e = config_.num_experts, h = config_.inner;
  Random random(detail::purpose_seed(seed, detail::Purpose::network));
  const auto weight = [&](const char* name, std::int64_t rows, std::int64_t cols, double deviation) {
    const std::int64_t from = add(name, rows, cols);
    for (std::int64_t i = from; i < from + rows * cols; ++i)
      parameters_[at(i)] = static_cast<Real>(deviation * random.normal());
  };
  const auto affine = [&](const char* w, const char* b, std::int64_t in, std::int64_t out) {
    weight(w, in, out, 1 / std::sqrt(static_cast<double>(in)));
    add(b, 1, out);
  };
  switch (config.arch) {
    case GateArch::linear:
      affine("weight", "bias", d, e);
      break;
    case GateArch::mlp:
      affine("weight1", "bias1", d, h);
      affine("weight2", "bias2", h, e);
      break;
    case GateArch::mlp_hadamard:
      affine("weight1", "bias1", d, h);
      affine("weight2", "bias2", h, d);
      affine("weight", "bias", d, e);
      break;
    case GateArch::cosine:
      affine("projection", "bias", d, h);
      weight("experts", h, e, 0.01);
      parameters_[at(add("theta", 1, 1))] = static_cast<Real>(0.69314718055994530942);  // ln 2
      break;
  }
}

template <class Real>
void GateNetwork<Real>::forward(View2<const Real> x, View2<Real> logits, Trace& trace) const {
  const std::int64_t d = config_.hidden, h = config_.inner;
  if (x.cols != d || logits.rows != x.rows || logits.cols != config_.num_experts)
    refuse("gate network: tokens [{}, {}] and logits [{}, {}]; allowed are [T, {}] and [T, {}]", x.rows,
           x.cols, logits.rows, logits.cols, d, config_.num_experts);
  if (config_.arch == GateArch::cosine) return cosine_forward(x, logits, trace);
  if (config_.arch == GateArch::linear) {
    const Affine layer = layer_of(layout_, 0);
    for (std::int64_t t = 0; t < x.rows; ++t) apply(layer, parameters_, x.row(t), logits.row(t));
    return;
  }
  const bool hadamard = config_.arch == GateArch::mlp_hadamard;
  const Affine first = layer_of(layout_, 0), second = layer_of(layout_, 2);
  trace.before.assign(at(x.rows * h), Real(0));
  trace.after = trace.before;
  trace.factor.assign(at(hadamard ? x.rows * d : 0), Real(0));
  trace.mixed = trace.factor;
  for (std::int64_t t = 0; t < x.rows; ++t) {
    Real* before = trace.before.data() + t * h;
    Real* after = trace.after.data() + t * h;
    apply(first, parameters_, x.row(t), before);
    std::transform(before, before + h, after, gelu<Real>);
    if (!hadamard) {
      apply(second, parameters_, after, logits.row(t));
      continue;
    }
    Real* factor = trace.factor.data() + t * d;
    Real* mixed = trace.mixed.data() + t * d;
    apply(second, parameters_, after, factor);
    for (std::int64_t i = 0; i < d; ++i) mixed[i] = factor[i] * x.row(t)[i];
    apply(layer_of(layout_, 4), parameters_, mixed, logits.row(t));
  }
}

template <class Real>
void GateNetwork<Real>::backward(View2<const Real> x, const Trace& trace, View2<const Real> grad_logits,
                                 std::span<Real> grad_parameters, View2<Real> grad_x) const {
  const std::int64_t d = config_.hidden, h = config_.inner;
  const bool hadamard = config_.arch == GateArch::mlp_hadamard;
  if (x.cols != d || grad_logits.rows != x.rows || grad_logits.cols != config_.num_experts ||
      (grad_x.data != nullptr && (grad_x.rows != x.rows || grad_x.cols != d)))
    refuse(
        "gate network: tokens [{}, {}], their gradient [{}, {}] and that of the logits [{}, {}]; allowed are "
        "[T, {}] and [T, {}]",
        x.rows, x.cols, grad_x.rows, grad_x.cols, grad_logits.rows, grad_logits.cols, d, config_.num_experts);
  if (grad_parameters.size() != parameters_.size())
    refuse("gate network: a gradient of {} parameters; there are {}", grad_parameters.size(),
           parameters_.size());
  const std::int64_t traced = config_.arch == GateArch::linear ? 0 : x.rows * h;
  if (trace.before.size() != at(traced) && config_.arch != GateArch::linear)
    refuse("gate network: the trace is of {} inner elements, not of {}; it must be that of forward",
           trace.before.size(), traced);
  if (config_.arch == GateArch::cosine)
    return cosine_backward(x, trace, grad_logits, grad_parameters, grad_x);
  const auto grad_of = [&grad_x](std::int64_t t) { return grad_x.data == nullptr ? nullptr : grad_x.row(t); };
  if (config_.arch == GateArch::linear) {
    const Affine layer = layer_of(layout_, 0);
    for (std::int64_t t = 0; t < x.rows; ++t)
      apply_backward(layer, parameters_, x.row(t), grad_logits.row(t), grad_parameters, grad_of(t));
    return;
  }
  const Affine first = layer_of(layout_, 0), second = layer_of(layout_, 2);
  std::vector<Real> inner(at(h)), mixed(at(hadamard ? d : 0));
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const Real* after = trace.after.data() + t * h;
    const Real* before = trace.before.data() + t * h;
    std::fill(inner.begin(), inner.end(), Real(0));
    const Real* down = grad_logits.row(t);
    if (hadamard) {
      std::fill(mixed.begin(), mixed.end(), Real(0));
      apply_backward(layer_of(layout_, 4), parameters_, trace.mixed.data() + t * d, down, grad_parameters,
                     mixed.data());
      for (std::int64_t i = 0; i < d; ++i) {
        if (grad_x.data != nullptr) grad_x.row(t)[i] += mixed[at(i)] * trace.factor[at(t * d + i)];
        mixed[at(i)] *= x.row(t)[i];
      }
      down = mixed.data();
    }
    apply_backward(second, parameters_, after, down, grad_parameters, inner.data());
    for (std::int64_t i = 0; i < h; ++i) inner[at(i)] *= gelu_slope(before[i]);
    apply_backward(first, parameters_, x.row(t), inner.data(), grad_parameters, grad_of(t));
  }
}

template <class Real>
void GateNetwork<Real>::cosine_forward(View2<const Real> x, View2<Real> logits, Trace& trace) const {
  const std::int64_t h = config_.inner, experts = config_.num_experts;
  const Affine projection = layer_of(layout_, 0);
  const Real* s = parameters_.data() + layout_[2].offset;
  const Real scale = std::exp(std::min(parameters_[at(layout_[3].offset)], static_cast<Real>(kLargestTheta)));
  trace.before.assign(at(x.rows * h), Real(0));
  trace.after = trace.before;
  std::vector<Real> lengths(at(experts));
  for (std::int64_t e = 0; e < experts; ++e) lengths[at(e)] = length(s + e, h, experts);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    Real* p = trace.before.data() + t * h;
    Real* unit = trace.after.data() + t * h;
    apply(projection, parameters_, x.row(t), p);
    const Real p_length = length(p, h);
    Real* z = logits.row(t);
    std::fill_n(z, experts, Real(0));
    for (std::int64_t i = 0; i < h; ++i) {
      unit[i] = p[i] / p_length;
      for (std::int64_t e = 0; e < experts; ++e) z[e] += unit[i] * s[i * experts + e];
    }
    for (std::int64_t e = 0; e < experts; ++e) z[e] *= scale / lengths[at(e)];
  }
}

template <class Real>
void GateNetwork<Real>::cosine_backward(View2<const Real> x, const Trace& trace,
                                        View2<const Real> grad_logits, std::span<Real> grad_parameters,
                                        View2<Real> grad_x) const {
  const std::int64_t h = config_.inner, experts = config_.num_experts;
  const Affine projection = layer_of(layout_, 0);
  const Real* s = parameters_.data() + layout_[2].offset;
  Real* grad_s = grad_parameters.data() + layout_[2].offset;
  const Real theta = parameters_[at(layout_[3].offset)];
  const Real scale = std::exp(std::min(theta, static_cast<Real>(kLargestTheta)));
  std::vector<Real> units(at(h * experts)), grad_units(units.size()), lengths(at(experts));
  for (std::int64_t e = 0; e < experts; ++e) lengths[at(e)] = length(s + e, h, experts);
  for (std::int64_t i = 0; i < h * experts; ++i) units[at(i)] = s[i] / lengths[at(i % experts)];

  Real grad_theta = 0;
  std::vector<Real> grad_unit(at(h)), cosines(at(experts));
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const Real* unit = trace.after.data() + t * h;
    const Real* g = grad_logits.row(t);
    std::fill(cosines.begin(), cosines.end(), Real(0));
    Real along = 0;
    for (std::int64_t i = 0; i < h; ++i) {
      Real sum = 0;
      for (std::int64_t e = 0; e < experts; ++e) {
        cosines[at(e)] += unit[i] * units[at(i * experts + e)];
        sum += scale * g[e] * units[at(i * experts + e)];
        grad_units[at(i * experts + e)] += scale * g[e] * unit[i];
      }
      grad_unit[at(i)] = sum;
      along += sum * unit[i];
    }
    for (std::int64_t e = 0; e < experts; ++e) grad_theta += g[e] * cosines[at(e)] * scale;
    const Real p_length = length(trace.before.data() + t * h, h);
    for (std::int64_t i = 0; i < h; ++i) grad_unit[at(i)] = (grad_unit[at(i)] - unit[i] * along) / p_length;
    apply_backward(projection, parameters_, x.row(t), grad_unit.data(), grad_parameters,
                   grad_x.data == nullptr ? nullptr : grad_x.row(t));
  }
  for (std::int64_t e = 0; e < experts; ++e) {
    Real along = 0;
    for (std::int64_t i = 0; i < h; ++i)
      along += grad_units[at(i * experts + e)] * units[at(i * experts + e)];
    for (std::int64_t i = 0; i < h; ++i) {
      const auto place = at(i * experts + e);
      grad_s[i * experts + e] += (grad_units[place] - units[place] * along) / lengths[at(e)];
    }
  }
  // Beyond the limit the scale stands still.
  if (theta <= static_cast<Real>(kLargestTheta)) grad_parameters[at(layout_[3].offset)] += grad_theta;
}

template class GateNetwork<float>;
template class GateNetwork<double>;

}  // namespace shunt

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "layer_work.h"

namespace shunt::bench {
namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

double value(float of) {
  return static_cast<double>(of);
}

/// One expert in double, written apart from the library.
struct Expert {
  const LayerPoint& point;
  const float *w1, *w2, *b1, *b2;
  std::int64_t ffn;

  Expert(const LayerPoint& of, ExpertFfn& all, std::int64_t expert, std::int64_t ffn_in)
      : point(of), ffn(ffn_in) {
    const auto part = [&all, expert](std::size_t slice) -> const float* {
      if (slice >= all.layout().size()) return nullptr;
      const ParameterSlice& layout = all.layout()[slice];
      return all.parameters().data() + layout.offset +
             layout.rows / all.config().num_experts * expert * layout.cols;
    };
    w1 = part(0);
    w2 = part(1);
    b1 = part(2);
    b2 = part(3);
  }
  [[nodiscard]] std::int64_t inner() const { return point.activation == "swiglu" ? 2 * ffn : ffn; }

  /// What the products read: bf16 rounds the weights.
  [[nodiscard]] double weight(const float* of) const {
    return value(point.dtype == DType::bf16 ? bf16_to_f32(f32_to_bf16(*of)) : *of);
  }

  [[nodiscard]] double after(const std::vector<double>& before, std::int64_t i) const {
    const double x = before[at(i)];
    if (point.activation == "gelu") return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    const double silu = x / (1 + std::exp(-x));
    return point.activation == "silu" ? silu : silu * before[at(ffn + i)];
  }

  /// Gradient of after(i) by before[i]; of swiglu's gated part the other.
  [[nodiscard]] double slope(const std::vector<double>& before, std::int64_t i, bool gated) const {
    const double x = before[at(i)];
    if (point.activation == "gelu")
      return 0.5 * std::erfc(-x / std::sqrt(2.0)) + x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
    const double s = 1 / (1 + std::exp(-x));
    if (gated) return x * s;
    return s * (1 + x * (1 - s)) * (point.activation == "silu" ? 1 : before[at(ffn + i)]);
  }

  [[nodiscard]] std::vector<double> before(const std::vector<double>& x) const {
    std::vector<double> sums(at(inner()), 0.0);
    for (std::int64_t h = 0; h < point.hidden; ++h)
      for (std::int64_t i = 0; i < inner(); ++i) sums[at(i)] += x[at(h)] * weight(w1 + h * inner() + i);
    if (b1 != nullptr)
      for (std::int64_t i = 0; i < inner(); ++i) sums[at(i)] += value(b1[i]);
    return sums;
  }

  [[nodiscard]] std::vector<double> result(const std::vector<double>& of) const {
    std::vector<double> y(at(point.hidden), 0.0);
    for (std::int64_t i = 0; i < ffn; ++i) {
      const double a = after(of, i);
      for (std::int64_t h = 0; h < point.hidden; ++h) y[at(h)] += a * weight(w2 + i * point.hidden + h);
    }
    if (b2 != nullptr)
      for (std::int64_t h = 0; h < point.hidden; ++h) y[at(h)] += value(b2[h]);
    return y;
  }

  [[nodiscard]] double back(const std::vector<double>& by, std::int64_t i) const {
    double sum = 0;
    for (std::int64_t h = 0; h < point.hidden; ++h) sum += by[at(h)] * weight(w2 + i * point.hidden + h);
    return sum;
  }

  /// grad_x += factor * gradient.
  void add_gradient(const std::vector<double>& of, const std::vector<double>& by, double factor,
                    std::vector<double>& grad_x) const {
    std::vector<double> grad(at(inner()));
    for (std::int64_t i = 0; i < ffn; ++i) {
      const double u = factor * back(by, i);
      grad[at(i)] = u * slope(of, i, false);
      if (inner() > ffn) grad[at(ffn + i)] = u * slope(of, i, true);
    }
    for (std::int64_t h = 0; h < point.hidden; ++h)
      for (std::int64_t i = 0; i < inner(); ++i) grad_x[at(h)] += grad[at(i)] * weight(w1 + h * inner() + i);
  }
};

std::vector<double> row(const LayerPoint& point, const std::vector<std::byte>& of, std::int64_t token) {
  std::vector<double> values(at(point.hidden));
  for (std::int64_t h = 0; h < point.hidden; ++h)
    values[at(h)] = value(load_element(point.dtype, of.data(), token * point.hidden + h));
  return values;
}

double bound(const LayerPoint& point) {
  return point.dtype == DType::bf16 ? 4e-2 : 2e-4;
}

std::string differs(const LayerPoint& point, const std::vector<double>& got,
                    const std::vector<double>& wanted, const std::string& what) {
  double largest = 1e-30;
  for (const double one : wanted) largest = std::max(largest, std::abs(one));
  for (std::size_t i = 0; i < got.size(); ++i)
    if (!(std::abs(got[i] - wanted[i]) <= bound(point) * largest))
      return fmt::format("{}: element {} is {}, not {}", what, i, got[i], wanted[i]);
  return {};
}

std::string check_token(const LayerPoint& point, MoeLayer& layer, const LayerData& data, std::int64_t token) {
  const std::vector<double> x = row(point, data.x, token), by = row(point, data.by, token);
  const std::int64_t e = point.num_experts, k = layer.kept().top_k;
  const std::vector<float>& router = layer.router().parameters();
  const auto first = at(token * k);
  std::vector<double> weights(
      layer.kept().weights.begin() + static_cast<std::ptrdiff_t>(first),
      layer.kept().weights.begin() + static_cast<std::ptrdiff_t>(first) + static_cast<std::ptrdiff_t>(k));
  const bool softk = point.gate == "softk";
  if (softk) {
    std::vector<double> z(at(e));
    for (std::int64_t i = 0; i < e; ++i) {
      z[at(i)] = value(router[at(point.hidden * e + i)]);
      for (std::int64_t h = 0; h < point.hidden; ++h) z[at(i)] += x[at(h)] * value(router[at(h * e + i)]);
    }
    std::vector<std::int32_t> order(at(e));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&z](std::int32_t a, std::int32_t b) { return z[at(a)] > z[at(b)]; });
    double sum = 0;
    for (std::int64_t i = 0; i < k; ++i) sum += std::exp(z[at(order[at(i)])] - z[at(order[0])]);
    for (std::int64_t i = 0; i < k; ++i) {
      if (layer.chosen().ids[first + at(i)] != order[at(i)])
        return fmt::format("choice {} of token {} is expert {}, not {}", i, token,
                           layer.chosen().ids[first + at(i)], order[at(i)]);
      weights[at(i)] = std::exp(z[at(order[at(i)])] - z[at(order[0])]) / sum;
    }
  }
  std::vector<double> out(at(point.hidden), 0.0), grad_x(out), dots(at(k), 0.0);
  const auto add = [&](const Expert& expert, double factor, double* dot) {
    const std::vector<double> before = expert.before(x);
    const std::vector<double> y = expert.result(before);
    for (std::int64_t h = 0; h < point.hidden; ++h) {
      out[at(h)] += factor * y[at(h)];
      if (dot != nullptr) *dot += by[at(h)] * y[at(h)];
    }
    if (point.backward && softk) expert.add_gradient(before, by, factor, grad_x);
  };
  for (std::int64_t i = 0; i < k; ++i)
    if (const std::int32_t id = layer.kept().ids[first + at(i)]; id >= 0)
      add(Expert(point, layer.experts(), id, point.inner()), weights[at(i)], &dots[at(i)]);
  if (layer.shared() != nullptr)
    add(Expert(point, *layer.shared(), 0, point.inner() * point.shared_experts), 1, nullptr);
  if (std::string wrong =
          differs(point, row(point, data.out, token), out, fmt::format("result of token {}", token));
      !wrong.empty())
    return wrong;
  if (!point.backward || !softk) return {};
  double mean = 0;
  for (std::int64_t i = 0; i < k; ++i) mean += weights[at(i)] * dots[at(i)];
  for (std::int64_t i = 0; i < k; ++i) {
    const double grad = weights[at(i)] * (dots[at(i)] - mean);
    const std::int64_t id = layer.chosen().ids[first + at(i)];
    for (std::int64_t h = 0; h < point.hidden; ++h) grad_x[at(h)] += grad * value(router[at(h * e + id)]);
  }
  return differs(point, row(point, data.grad_x, token), grad_x, fmt::format("gradient of token {}", token));
}

/// Some elements of the gradients of one expert's weights, from all its tokens.
std::string check_expert(const LayerPoint& point, MoeLayer& layer, const LayerData& data, std::int64_t id) {
  const Expert expert(point, layer.experts(), id, point.inner());
  const std::int64_t h = point.hidden, inner = expert.inner();
  const std::int64_t column = id * 31 % expert.ffn, from = id * 17 % h, to = (id * 13 + 5) % h;
  // The needed columns and rows of the weights, and an expert of one inner element made of them.
  double first = 0, second = 0, first_size = 0, second_size = 0;
  const std::int64_t k = layer.kept().top_k;
  for (std::int64_t i = 0; i < point.tokens * k; ++i) {
    if (layer.kept().ids[at(i)] != id) continue;
    const double weight = value(layer.kept().weights[at(i)]);
    const std::vector<double> x = row(point, data.x, i / k), by = row(point, data.by, i / k);
    std::vector<double> before(at(inner), 0.0);
    for (const std::int64_t c : {column, column + expert.ffn}) {
      if (c >= inner) continue;
      double sum = expert.b1 != nullptr ? value(expert.b1[c]) : 0;
      for (std::int64_t j = 0; j < h; ++j) sum += x[at(j)] * expert.weight(expert.w1 + j * inner + c);
      before[at(c)] = sum;
    }
    const double w1 = x[at(from)] * weight * expert.back(by, column) * expert.slope(before, column, false);
    const double w2 = weight * expert.after(before, column) * by[at(to)];
    first += w1;
    second += w2;
    first_size += std::abs(w1);
    second_size += std::abs(w2);
  }
  const auto got = [&](std::size_t slice, std::int64_t r, std::int64_t c) {
    const ParameterSlice& of = layer.experts().layout()[slice];
    return value(
        data.gradients.experts[at(of.offset + (of.rows / point.num_experts * id + r) * of.cols + c)]);
  };
  if (const double is = got(0, from, column); !(std::abs(is - first) <= bound(point) * first_size + 1e-30))
    return fmt::format("gradient of w1 [{}, {}] of expert {} is {}, not {}", from, column, id, is, first);
  if (const double is = got(1, column, to); !(std::abs(is - second) <= bound(point) * second_size + 1e-30))
    return fmt::format("gradient of w2 [{}, {}] of expert {} is {}, not {}", column, to, id, is, second);
  return {};
}

template <class Read>
std::string norm_differs(std::int64_t n, const Read& mine, const Read& other, double most, const char* what) {
  double difference = 0, size = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double a = mine(i), b = other(i);
    difference += (a - b) * (a - b);
    size += b * b;
  }
  if (std::sqrt(difference) <= most * std::sqrt(size) + 1e-30) return {};
  return fmt::format("{}: differs by {} of its norm from the other implementation, more than {}", what,
                     std::sqrt(difference / size), most);
}

}  // namespace

std::string check_against_double(const LayerPoint& point, MoeLayer& layer, const LayerData& data) {
  constexpr std::int64_t kTokens = 16, kExperts = 6;
  for (std::int64_t i = 0; i < std::min(kTokens, point.tokens); ++i)
    if (std::string wrong =
            check_token(point, layer, data, i * (point.tokens - 1) / std::max<std::int64_t>(1, kTokens - 1));
        !wrong.empty())
      return wrong;
  if (!point.backward) return {};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(kExperts, point.num_experts); ++i)
    if (std::string wrong = check_expert(
            point, layer, data, i * point.num_experts / std::min<std::int64_t>(kExperts, point.num_experts));
        !wrong.empty())
      return wrong;
  return {};
}

std::string check_against(const LayerPoint& point, const LayerData& data, const LayerData& other,
                          bool weights) {
  const double most = point.dtype == DType::bf16 ? 3e-2 : 1e-4;
  using Read = std::function<double(std::int64_t)>;
  const auto rows = [&point](const std::vector<std::byte>& of) -> Read {
    return [&point, &of](std::int64_t i) { return value(load_element(point.dtype, of.data(), i)); };
  };
  const auto floats = [](const std::vector<float>& of) -> Read {
    return [&of](std::int64_t i) { return value(of[at(i)]); };
  };
  const std::int64_t elements = point.tokens * point.hidden;
  std::string wrong = norm_differs(elements, rows(data.out), rows(other.out), most, "results");
  if (!wrong.empty() || !point.backward) return wrong;
  wrong = norm_differs(elements, rows(data.grad_x), rows(other.grad_x), most, "gradient by tokens");
  if (!wrong.empty() || !weights) return wrong;
  struct Part {
    const char* what;
    const std::vector<float>&mine, &theirs;
  };
  for (const Part& part :
       {Part{"gradient by the router", data.gradients.router, other.gradients.router},
        Part{"gradient by experts", data.gradients.experts, other.gradients.experts},
        Part{"gradient by shared experts", data.gradients.shared, other.gradients.shared}}) {
    wrong = norm_differs(static_cast<std::int64_t>(part.mine.size()), floats(part.mine), floats(part.theirs),
                         most, part.what);
    if (!wrong.empty()) return wrong;
  }
  return {};
}

}  // namespace shunt::bench

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "routing_choice.h"
#include "routing_moves.h"

namespace shunt::bench {
namespace {

using Clock = std::chrono::steady_clock;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

}  // namespace

TopKWork::TopKWork(const RoutingPoint& point, Team& team)
    : point_(point),
      team_(team),
      logits_(point.tokens * point.num_experts * dtype_bytes(point.dtype)),
      ids_(at(point.tokens * point.top_k)),
      wide_ids_(ids_.size()),
      weights_(ids_.size()) {
  double router_ms = 0;
  const std::vector<float> values = make_logits(point, team, router_ms);
  for (std::size_t i = 0; i < values.size(); ++i)
    store_element(point.dtype, logits_.data(), static_cast<std::int64_t>(i), values[i]);
}

RoutingTook TopKWork::run(const PackKernels& kernels) {
  const auto start = Clock::now();
  const std::int64_t k = point_.top_k;
  team_.share(point_.tokens, [&](std::int32_t /*part*/, std::int64_t from, std::int64_t to) {
    kernels.top_k({.logits = logits_.data() + from * point_.num_experts * dtype_bytes(point_.dtype),
                   .dtype = point_.dtype,
                   .num_tokens = to - from,
                   .num_experts = point_.num_experts,
                   .top_k = point_.top_k,
                   .ids = ids_.data() + from * k,
                   .values = weights_.data() + from * k});
    for (std::int64_t t = from; t < to; ++t) {
      float* of = weights_.data() + t * k;
      const float largest = of[0];
      float sum = 0;
      for (std::int64_t i = 0; i < k; ++i) sum += of[i] = std::exp(of[i] - largest);
      for (std::int64_t i = 0; i < k; ++i) of[i] /= sum;
    }
  });
  return {std::chrono::duration<double, std::milli>(Clock::now() - start).count(), 0};
}

RoutingRunner TopKWork::runner(const std::string& impl) {
  if (impl != "torch") {
    const PackKernels& kernels = impl_kernels(impl);
    return {.run = [this, &kernels] { return run(kernels); },
            .check = [this] { return check(false); },
            .isa = isa_name(kernels.isa),
            .written = {}};
  }
  const TorchTable& torch = torch_plugin();
  const char* error = nullptr;
  torch_.reset(torch.make_top_k({.tokens = point_.tokens,
                                 .num_experts = point_.num_experts,
                                 .top_k = point_.top_k,
                                 .dtype = point_.dtype,
                                 .logits = logits_.data(),
                                 .ids = wide_ids_.data(),
                                 .weights = weights_.data(),
                                 .threads = team_.size()},
                                error));
  if (torch_ == nullptr) throw Error(Errc::internal, fmt::format("--impl torch: libtorch says: {}", error));
  return {
      .run =
          [this] {
            const auto start = Clock::now();
            if (const char* said = torch_->run(0); said != nullptr)
              throw Error(Errc::internal, fmt::format("--impl torch: libtorch says: {}", said));
            return RoutingTook{std::chrono::duration<double, std::milli>(Clock::now() - start).count(), 0};
          },
      .check =
          [this] {
            std::transform(wide_ids_.begin(), wide_ids_.end(), ids_.begin(),
                           [](std::int64_t id) { return static_cast<std::int32_t>(id); });
            return check(true);
          },
      .isa = fmt::format("torch {}", torch.version),
      .written = torch_->formulation(0)};
}

void TopKWork::spoil() {
  std::fill(ids_.begin(), ids_.end(), -2);
  std::fill(wide_ids_.begin(), wide_ids_.end(), -2);
  std::fill(weights_.begin(), weights_.end(), std::nanf(""));
}

std::string TopKWork::check(bool any_tie) const {
  std::vector<std::int32_t> order(at(point_.num_experts));
  std::vector<double> z(order.size());
  for (std::int64_t t = 0; t < point_.tokens; ++t) {
    for (std::int64_t e = 0; e < point_.num_experts; ++e)
      z[at(e)] = static_cast<double>(load_element(point_.dtype, logits_.data(), t * point_.num_experts + e));
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(
        order.begin(), order.begin() + point_.top_k, order.end(),
        [&z](std::int32_t a, std::int32_t b) { return z[at(a)] != z[at(b)] ? z[at(a)] > z[at(b)] : a < b; });
    double sum = 0;
    for (std::int64_t k = 0; k < point_.top_k; ++k) sum += std::exp(z[at(order[at(k)])] - z[at(order[0])]);
    for (std::int64_t k = 0; k < point_.top_k; ++k) {
      const std::int32_t expert = order[at(k)];
      const auto i = at(t * point_.top_k + k);
      const std::int32_t got = ids_[i];
      const auto* chosen = ids_.data() + t * point_.top_k;
      const bool known =
          got >= 0 && got < point_.num_experts && std::count(chosen, chosen + point_.top_k, got) == 1;
      if (any_tie ? !known || z[at(got)] != z[at(expert)] : got != expert)
        return fmt::format("choice {} of token {} is expert {}, not {}", k, t, got, expert);
      const double weight = std::exp(z[at(expert)] - z[at(order[0])]) / sum;
      if (!(std::abs(static_cast<double>(weights_[i]) - weight) <= 1e-5 * weight + 1e-30))
        return fmt::format("weight {} of token {} is {}, not {}", k, t, weights_[i], weight);
    }
  }
  return {};
}

GateOutput<float> TopKWork::output() {
  (void)run(pack_kernels(Isa::scalar));
  return {point_.tokens, point_.num_experts, point_.top_k, ids_, weights_};
}

}  // namespace shunt::bench

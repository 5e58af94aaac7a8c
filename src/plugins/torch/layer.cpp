// The MoE layer as programs on libtorch write it, with autograd. Of two ways the faster here is taken, after a trial of
// each, so that the peer is no straw man.
#include <torch/torch.h>

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "plugin.h"

namespace shunt::bench::torch_peer {
namespace {

using Clock = std::chrono::steady_clock;

at::ScalarType torch_dtype(DType dtype) {
  return dtype == DType::f32 ? at::kFloat : at::kBFloat16;
}

/// Its own tensor, a leaf that wants a gradient.
at::Tensor leaf(const void* data, at::IntArrayRef sizes, at::ScalarType from, at::ScalarType dtype) {
  return at::from_blob(const_cast<void*>(data), sizes, at::TensorOptions().dtype(from))
      .to(dtype, /*non_blocking=*/false, /*copy=*/true)
      .requires_grad_(true);
}

struct Expert {
  at::Tensor w1, w2, b1, b2;
};

class Layer final : public TorchWork {
 public:
  explicit Layer(const TorchLayer& of) : of_(of), dtype_(torch_dtype(of.dtype)) {
    x_ = leaf(of.x, {of.tokens, of.hidden}, dtype_, dtype_);
    by_ = at::from_blob(const_cast<void*>(of.grad_out), {of.tokens, of.hidden},
                        at::TensorOptions().dtype(dtype_));
    router_ = leaf(of.router, {of.hidden, of.num_experts}, at::kFloat, at::kFloat);
    router_bias_ = leaf(of.router + of.hidden * of.num_experts, {of.num_experts}, at::kFloat, at::kFloat);
    experts_ = read(of.experts, of.num_experts, of.ffn);
    if (of.shared_experts > 0) shared_ = read(of.shared, 1, of.ffn * of.shared_experts);
    double times[2] = {};
    for (const bool sorted : {false, true}) {
      sorted_ = sorted;
      for (int trial = 0; trial < 2; ++trial) {
        const auto start = Clock::now();
        forward();
        if (of.backward) backward();
        times[sorted ? 1 : 0] = std::chrono::duration<double>(Clock::now() - start).count();
      }
    }
    sorted_ = times[1] < times[0];
  }

  [[nodiscard]] const char* run(std::int32_t step) noexcept override {
    try {
      if (step == TorchLayer::kForward) forward();
      if (step == TorchLayer::kBackward) backward();
      if (step == TorchLayer::kRead) write_results();
      return nullptr;
    } catch (const std::exception& error) {
      return keep(error);
    }
  }
  [[nodiscard]] const char* formulation(std::int32_t /*step*/) const noexcept override {
    return sorted_ ? "sort, index_select, mm by expert, cat, index_add"
                   : "by expert: index_select, mm, index_add";
  }

 private:
  [[nodiscard]] std::vector<Expert> read(const float* from, std::int64_t count, std::int64_t ffn) const {
    const std::int64_t inner = of_.activation == 2 ? 2 * ffn : ffn;
    std::vector<Expert> experts(static_cast<std::size_t>(count));
    const auto each = [&](at::Tensor Expert::*part, std::int64_t rows, std::int64_t cols) {
      for (Expert& one : experts) {
        one.*part = leaf(from, {rows, cols}, at::kFloat, dtype_);
        from += rows * cols;
      }
    };
    each(&Expert::w1, of_.hidden, inner);
    each(&Expert::w2, ffn, of_.hidden);
    if (!of_.bias) return experts;
    each(&Expert::b1, 1, inner);
    each(&Expert::b2, 1, of_.hidden);
    return experts;
  }

  [[nodiscard]] at::Tensor apply(const Expert& expert, const at::Tensor& x) const {
    const at::Tensor before = of_.bias ? at::addmm(expert.b1, x, expert.w1) : at::mm(x, expert.w1);
    at::Tensor after;
    if (of_.activation == 0) {
      after = at::gelu(before);
    } else if (of_.activation == 1) {
      after = at::silu(before);
    } else {
      const std::vector<at::Tensor> parts = before.chunk(2, 1);
      after = at::silu(parts[0]) * parts[1];
    }
    return of_.bias ? at::addmm(expert.b2, after, expert.w2) : at::mm(after, expert.w2);
  }

  void forward() {
    const at::AutoGradMode graph(of_.backward);
    const at::Tensor logits = at::addmm(router_bias_, x_.to(at::kFloat), router_);
    const auto [values, ids] = at::topk(logits, of_.top_k, 1);
    const at::Tensor weights = at::softmax(values, 1).to(dtype_).view({-1, 1});
    const at::Tensor flat = ids.reshape({-1});
    const at::Tensor order = std::get<1>(at::sort(flat, /*stable=*/true, 0, false));
    const at::Tensor tokens = at::div(order, std::int64_t{of_.top_k}, "floor");
    const at::Tensor counts = at::bincount(flat, {}, of_.num_experts);
    const std::int64_t* const count = counts.data_ptr<std::int64_t>();
    at::Tensor sum = shared_.empty() ? at::zeros({of_.tokens, of_.hidden}, x_.options().requires_grad(false))
                                     : apply(shared_[0], x_);
    std::int64_t first = 0;
    if (sorted_) {
      const at::Tensor rows = x_.index_select(0, tokens);
      std::vector<at::Tensor> results;
      for (std::size_t e = 0; e < experts_.size(); first += count[e++])
        if (count[e] > 0) results.push_back(apply(experts_[e], rows.narrow(0, first, count[e])));
      sum = sum.index_add(0, tokens, at::cat(results) * weights.index_select(0, order));
    } else {
      for (std::size_t e = 0; e < experts_.size(); first += count[e++]) {
        if (count[e] == 0) continue;
        const at::Tensor mine = tokens.narrow(0, first, count[e]);
        const at::Tensor by = weights.index_select(0, order.narrow(0, first, count[e]));
        sum = sum.index_add(0, mine, apply(experts_[e], x_.index_select(0, mine)) * by);
      }
    }
    out_ = sum;
  }

  void backward() {
    const auto clear = [](at::Tensor& of) {
      if (of.defined()) of.mutable_grad() = at::Tensor();
    };
    for (at::Tensor* one : {&x_, &router_, &router_bias_}) clear(*one);
    for (std::vector<Expert>* all : {&experts_, &shared_})
      for (Expert& one : *all)
        for (at::Tensor* part : {&one.w1, &one.w2, &one.b1, &one.b2}) clear(*part);
    out_.backward(by_);
  }

  void write_results() {
    const auto copy = [](const at::Tensor& from, void* to, at::ScalarType dtype) {
      at::from_blob(to, from.sizes(), at::TensorOptions().dtype(dtype)).copy_(from);
    };
    copy(out_.detach(), of_.out, dtype_);
    if (!of_.backward) return;
    copy(x_.grad(), of_.grad_x, dtype_);
    copy(router_.grad(), of_.grad_router, at::kFloat);
    copy(router_bias_.grad(), of_.grad_router + of_.hidden * of_.num_experts, at::kFloat);
    const auto write = [&copy](const std::vector<Expert>& experts, float* to) {
      for (const auto part : {&Expert::w1, &Expert::w2, &Expert::b1, &Expert::b2})
        for (const Expert& one : experts) {
          const at::Tensor& of = one.*part;
          if (!of.defined()) continue;
          const at::Tensor grad = of.grad().defined() ? of.grad() : at::zeros_like(of);
          copy(grad, to, at::kFloat);
          to += grad.numel();
        }
    };
    write(experts_, of_.grad_experts);
    write(shared_, of_.grad_shared);
  }

  TorchLayer of_;
  at::ScalarType dtype_;
  at::Tensor x_, by_, router_, router_bias_, out_;
  std::vector<Expert> experts_, shared_;
  bool sorted_ = true;
};

}  // namespace

TorchWork* make_layer(const TorchLayer& layer, const char*& error) noexcept {
  try {
    at::set_num_threads(layer.threads);
    return new Layer(layer);
  } catch (const std::exception& thrown) {
    error = keep(thrown);
    return nullptr;
  }
}

}  // namespace shunt::bench::torch_peer

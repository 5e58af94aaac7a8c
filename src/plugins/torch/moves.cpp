// Pack, combine and top-k as programs on libtorch write them. Of several ways to write a step the fastest here is taken,
// after a trial of each, so that the peer is no straw man.
#include <torch/torch.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "plugin.h"

namespace shunt::bench::torch_peer {
namespace {

using Clock = std::chrono::steady_clock;

at::ScalarType torch_dtype(DType dtype) {
  return dtype == DType::f32 ? at::kFloat : dtype == DType::f16 ? at::kHalf : at::kBFloat16;
}

at::Tensor wrap(const void* data, at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::from_blob(const_cast<void*>(data), sizes, at::TensorOptions().dtype(dtype));
}

/// One way to write a step.
struct Formulation {
  const char* name;
  std::function<void()> run;
};

/// The fastest of those that libtorch can do for this dtype, each tried three times.
Formulation fastest(const std::vector<Formulation>& all) {
  constexpr int kTrials = 3;
  const Formulation* best = nullptr;
  double best_time = 0;
  std::string said;
  for (const Formulation& one : all) {
    double time = 0;
    try {
      for (int trial = 0; trial < kTrials; ++trial) {
        const auto start = Clock::now();
        one.run();
        const double took = std::chrono::duration<double>(Clock::now() - start).count();
        if (trial == 0 || took < time) time = took;
      }
    } catch (const std::exception& error) {
      said = error.what();
      continue;
    }
    if (best == nullptr || time < best_time) {
      best = &one;
      best_time = time;
    }
  }
  if (best == nullptr) throw std::runtime_error(said);
  return *best;
}

class Moves final : public TorchMovesWork {
 public:
  explicit Moves(const TorchMoves& of)
      : of_(of),
        x_(wrap(of.x, {of.tokens, of.hidden}, torch_dtype(of.dtype))),
        rows_(wrap(of.rows, {of.tokens * of.top_k, of.hidden}, torch_dtype(of.dtype))),
        out_(wrap(of.out, {of.tokens, of.hidden}, torch_dtype(of.dtype))),
        ids_(wrap(of.ids, {of.tokens * of.top_k}, at::kInt).to(at::kLong)) {
    if (of.weights != nullptr) weights_ = wrap(of.weights, {of.tokens * of.top_k}, at::kFloat).clone();
    if ((ids_ < 0).any().item<bool>()) present_ = at::nonzero(ids_ >= 0).squeeze(1);
    steps_[kPack] = fastest(
        {{"argsort, index_select", [this] { pack(false); }}, {"argsort, index", [this] { pack(true); }}});
    std::vector<Formulation> sums{{"index_add_ in float32", [this] { index_add_wide(); }},
                                  {"index_add_", [this] { index_add(); }}};
    if (order_.size(0) == of.tokens * of.top_k) {
      sums.push_back({"index_select by token, mul, sum", [this] { unsort_sum(); }});
      sums.push_back({"index_select by token, bmm", [this] { unsort_bmm(); }});
      sums.push_back({"index_select of each choice, mul, add", [this] { by_choice(); }});
    }
    steps_[kCombine] = fastest(sums);
    steps_[kPack].run();
  }

  [[nodiscard]] const char* run(std::int32_t step) noexcept override {
    try {
      const c10::InferenceMode guard;
      steps_[step].run();
      return nullptr;
    } catch (const std::exception& error) {
      return keep(error);
    }
  }
  [[nodiscard]] const char* formulation(std::int32_t step) const noexcept override {
    return steps_[step].name;
  }
  [[nodiscard]] const std::int64_t* choices(std::int64_t& count) noexcept override {
    count = order_.size(0);
    return order_.data_ptr<std::int64_t>();
  }

 private:
  void pack(bool by_index) {
    at::Tensor ids = present_.defined() ? ids_.index_select(0, present_) : ids_;
    at::Tensor order = std::get<1>(at::sort(ids, /*stable=*/true, 0, false));
    if (of_.capacity > 0) {
      const at::Tensor sorted = ids.index_select(0, order);
      const at::Tensor counts = at::bincount(ids, {}, of_.num_experts);
      const at::Tensor starts = counts.cumsum(0) - counts;
      const at::Tensor places = at::arange(ids.size(0)) - starts.index_select(0, sorted);
      order = order.masked_select(places < of_.capacity);
    }
    order_ = present_.defined() ? present_.index_select(0, order) : order;
    source_ = at::div(order_, std::int64_t{of_.top_k}, "floor");
    at::Tensor rows = rows_.narrow(0, 0, order_.size(0));
    if (by_index)
      at::index_out(rows, x_, {source_});
    else
      at::index_select_out(rows, x_, 0, source_);
  }
  [[nodiscard]] at::Tensor rows() const { return rows_.narrow(0, 0, order_.size(0)); }
  [[nodiscard]] at::Tensor row_weights() const { return weights_.index_select(0, order_).unsqueeze(1); }

  void index_add_wide() {
    at::Tensor total = at::zeros({of_.tokens, of_.hidden}, at::kFloat);
    if (weights_.defined())
      total.index_add_(0, source_, rows() * row_weights());
    else
      total.index_add_(0, source_, rows().to(at::kFloat));
    out_.copy_(total);
  }
  void index_add() {
    out_.zero_();
    if (weights_.defined())
      out_.index_add_(0, source_, rows() * row_weights().to(out_.scalar_type()));
    else
      out_.index_add_(0, source_, rows());
  }
  [[nodiscard]] at::Tensor inverse() const {
    at::Tensor places = at::empty_like(order_);
    places.index_copy_(0, order_, at::arange(order_.size(0)));
    return places;
  }
  [[nodiscard]] at::Tensor by_token() const {
    return rows_.index_select(0, inverse()).view({of_.tokens, of_.top_k, of_.hidden});
  }
  void unsort_sum() {
    at::Tensor mine = by_token();
    if (weights_.defined()) mine.mul_(weights_.view({of_.tokens, of_.top_k, 1}).to(out_.scalar_type()));
    at::sum_out(out_, mine, {1});
  }
  void unsort_bmm() {
    const at::Tensor weights = weights_.defined()
                                   ? weights_.view({of_.tokens, 1, of_.top_k}).to(out_.scalar_type())
                                   : at::ones({of_.tokens, 1, of_.top_k}, out_.options());
    at::Tensor out = out_.view({of_.tokens, 1, of_.hidden});
    at::bmm_out(out, weights, by_token());
  }
  void by_choice() {
    const at::Tensor places = inverse().view({of_.tokens, of_.top_k});
    const at::Tensor weights =
        weights_.defined() ? weights_.view({of_.tokens, of_.top_k}).to(out_.scalar_type()) : at::Tensor();
    for (std::int32_t k = 0; k < of_.top_k; ++k) {
      const at::Tensor mine = rows_.index_select(0, places.select(1, k));
      if (k == 0 && weights_.defined())
        at::mul_out(out_, mine, weights.select(1, k).unsqueeze(1));
      else if (k == 0)
        out_.copy_(mine);
      else if (weights_.defined())
        out_.addcmul_(mine, weights.select(1, k).unsqueeze(1));
      else
        out_.add_(mine);
    }
  }

  TorchMoves of_;
  at::Tensor x_, rows_, out_, ids_, weights_;
  at::Tensor present_;         ///< Choices that are not -1, where some are
  at::Tensor order_, source_;  ///< Choice and token of each row
  Formulation steps_[2];
};

class TopK final : public TorchWork {
 public:
  explicit TopK(const TorchTopK& of)
      : of_(of),
        logits_(wrap(of.logits, {of.tokens, of.num_experts}, torch_dtype(of.dtype))),
        values_(at::empty({of.tokens, of.top_k}, logits_.options())),
        ids_(wrap(of.ids, {of.tokens, of.top_k}, at::kLong)),
        weights_(wrap(of.weights, {of.tokens, of.top_k}, at::kFloat)) {
    const auto select = [this](const at::Tensor& logits) {
      at::topk_out(values_, ids_, logits, of_.top_k);
      weights_.copy_(at::softmax(values_, 1, at::kFloat));
    };
    step_ = fastest(
        {{"topk, softmax", [this, select] { select(logits_); }}, {"topk of float32, softmax", [this, select] {
                                                                    values_ = values_.to(at::kFloat);
                                                                    select(logits_.to(at::kFloat));
                                                                  }}});
    values_ = at::empty({of.tokens, of.top_k},
                        at::TensorOptions().dtype(step_.name[4] == ',' ? logits_.scalar_type() : at::kFloat));
  }
  [[nodiscard]] const char* run(std::int32_t /*step*/) noexcept override {
    try {
      const c10::InferenceMode guard;
      step_.run();
      return nullptr;
    } catch (const std::exception& error) {
      return keep(error);
    }
  }
  [[nodiscard]] const char* formulation(std::int32_t /*step*/) const noexcept override { return step_.name; }

 private:
  TorchTopK of_;
  at::Tensor logits_, values_, ids_, weights_;
  Formulation step_;
};

template <class Work, class Base, class Of>
Base* make(const Of& of, const char*& error) noexcept {
  try {
    const c10::InferenceMode guard;
    at::set_num_threads(of.threads);
    return new Work(of);
  } catch (const std::exception& thrown) {
    error = keep(thrown);
    return nullptr;
  }
}

}  // namespace

TorchMovesWork* make_moves(const TorchMoves& moves, const char*& error) noexcept {
  return make<Moves, TorchMovesWork>(moves, error);
}

TorchWork* make_top_k(const TorchTopK& top_k, const char*& error) noexcept {
  return make<TopK, TorchWork>(top_k, error);
}

}  // namespace shunt::bench::torch_peer

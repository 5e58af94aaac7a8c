#include "row_exchange.h"

#include <algorithm>
#include <cstring>
#include <string>

#include <fmt/format.h>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/layout/partition.h>
#include <shunt/pack/kernels.h>
#include <shunt/transport/transport.h>

#include "activations.h"
#include "workers.h"

namespace shunt::detail {
namespace {

constexpr std::int64_t kTokens = 128;  ///< Of one task

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

std::int64_t blocks(std::int64_t tokens) {
  return (tokens + kTokens - 1) / kTokens;
}

class LocalExchange final : public RowExchange {
 public:
  LocalExchange(const MoeLayerConfig& config, Workers& workers)
      : config_(config),
        workers_(workers),
        element_(dtype_bytes(config.dtype)),
        sums_(at(workers.threads())) {}

  void dispatch(const Rows& tokens, const GateOutput<float>& kept, const CapacityPlan& plan) override {
    kept_ = &kept;
    plan_ = &plan;
    total_ = round_up(plan.starts.back(), kRowAlignment);
    starts_ = plan.starts;
    // Padded experts lie `capacity` rows apart, which leaves no room to round up.
    padded_ = std::all_of(starts_.begin(), starts_.end() - 1,
                          [](std::int64_t start) { return start % kRowAlignment == 0; });
    copy_rows(tokens, rows_);
    results_.at_least(row_bytes(total_));
  }

  void combine(const float* weights, float* start, const MutableRows& out) override {
    const PackKernels& kernels = pack_kernels();
    const std::int64_t k = kept_->top_k, h = config_.hidden;
    const std::vector<float> ones(at(k), 1.0F);
    workers_.run(blocks(kept_->num_tokens), [&](std::int64_t block, int worker) {
      std::vector<const void*> of(at(k));
      for (std::int64_t t = block * kTokens; t < std::min(kept_->num_tokens, (block + 1) * kTokens); ++t) {
        for (std::int64_t i = 0; i < k; ++i) {
          const std::int64_t row = row_of(t, i);
          of[at(i)] = row < 0 ? nullptr : results_.data() + row_bytes(row);
        }
        const bool direct = start == nullptr || config_.dtype == DType::f32;
        auto* const sum = direct ? nullptr : reinterpret_cast<float*>(sums_[at(worker)].at_least(h * 4));
        if (start != nullptr)
          std::memcpy(direct ? out.row(t) : static_cast<void*>(sum), start + t * h, at(h * 4));
        kernels.weighted_sum({.rows = of.data(),
                              .weights = weights == nullptr ? ones.data() : weights + t * k,
                              .num_rows = k,
                              .hidden = h,
                              .row_dtype = config_.dtype,
                              .out_dtype = direct ? config_.dtype : DType::f32,
                              .out = direct ? static_cast<void*>(out.row(t)) : sum,
                              .accumulate = start != nullptr});
        if (!direct) from_f32(config_.dtype, sum, h, out.row(t));
      }
    });
  }

  void redispatch(const Rows& gradients) override {
    copy_rows(gradients, gradient_rows_);
    row_weights_.assign(at(total_), 0.0F);
    const std::int64_t k = kept_->top_k;
    for (std::int64_t t = 0; t < kept_->num_tokens; ++t)
      for (std::int64_t i = 0; i < k; ++i)
        if (const std::int64_t row = row_of(t, i); row >= 0)
          row_weights_[at(row)] = kept_->weights[at(t * k + i)];
  }

  void weight_gradients(const float* of_rows, std::span<float> grad_weights) override {
    const std::int64_t k = kept_->top_k;
    for (std::int64_t t = 0; t < kept_->num_tokens; ++t)
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t row = row_of(t, i);
        grad_weights[at(t * k + i)] = row < 0 ? 0.0F : of_rows[row];
      }
  }

  [[nodiscard]] ExpertRows layout() const override {
    return {{starts_.data(), plan_->kept.size()}, plan_->kept, padded_, total_};
  }
  [[nodiscard]] Rows rows() const override { return {rows_.data(), total_, config_.hidden, config_.dtype}; }
  [[nodiscard]] Rows gradient_rows() const override {
    return {gradient_rows_.data(), total_, config_.hidden, config_.dtype};
  }
  [[nodiscard]] MutableRows results() override {
    return {results_.data(), total_, config_.hidden, config_.dtype};
  }
  [[nodiscard]] const float* row_weights() const override { return row_weights_.data(); }

 private:
  [[nodiscard]] std::int64_t row_bytes(std::int64_t rows) const { return rows * config_.hidden * element_; }

  [[nodiscard]] std::int64_t row_of(std::int64_t token, std::int64_t k) const {
    const auto i = at(token * kept_->top_k + k);
    return kept_->ids[i] < 0 || plan_->places[i] < 0 ? -1
                                                     : plan_->starts[at(kept_->ids[i])] + plan_->places[i];
  }

  void copy_rows(const Rows& tokens, RowMemory& memory) {
    std::byte* const to = memory.at_least(row_bytes(total_));
    const PackKernels& kernels = pack_kernels();
    workers_.run(blocks(tokens.rows), [&](std::int64_t block, int) {
      for (std::int64_t t = block * kTokens; t < std::min(tokens.rows, (block + 1) * kTokens); ++t)
        for (std::int64_t i = 0; i < kept_->top_k; ++i)
          if (const std::int64_t row = row_of(t, i); row >= 0)
            kernels.copy(to + row_bytes(row), tokens.row(t), row_bytes(1));
    });
    for (std::size_t e = 0; e < plan_->kept.size(); ++e) {
      const std::int64_t from = starts_[e] + plan_->kept[e];
      const std::int64_t end = e + 1 < plan_->kept.size() ? starts_[e + 1] : total_;
      if (end > from) std::memset(to + row_bytes(from), 0, at(row_bytes(end - from)));
    }
  }

  const MoeLayerConfig& config_;
  Workers& workers_;
  std::int64_t element_;
  const GateOutput<float>* kept_ = nullptr;
  const CapacityPlan* plan_ = nullptr;
  std::vector<std::int64_t> starts_;
  std::int64_t total_ = 0;
  bool padded_ = false;
  RowMemory rows_, gradient_rows_, results_;
  std::vector<float> row_weights_;
  std::vector<RowMemory> sums_;
};

AllToAllConfig exchange_config(const MoeLayerConfig& config) {
  AllToAllConfig exchange;
  exchange.max_tokens = config.max_tokens;
  exchange.num_experts = config.gate.num_experts;
  // A token of expert choice may be chosen by all of them.
  exchange.top_k =
      config.gate.selection == Selection::expert_choice ? config.gate.num_experts : config.gate.top_k;
  exchange.hidden = config.hidden;
  exchange.token_dtype = exchange.payload = exchange.expert_dtype = config.dtype;
  exchange.out_dtype = DType::f32;
  exchange.alignment = kRowAlignment;
  exchange.padding = PaddingRows::zero;
  exchange.max_recv_rows = config.max_recv_rows;
  exchange.deadline = config.deadline;
  return exchange;
}

/// Two exchanges: one of tokens and gradients, and one of rows [2 K] with a token's weights and ids, by which an owner
/// knows the weight of a row and sends the gradient by it home in the place of its k.
class RankExchange final : public RowExchange {
 public:
  RankExchange(const MoeLayerConfig& config, Workers& workers, Transport& transport)
      : config_(config),
        workers_(workers),
        width_(exchange_config(config).top_k),
        first_expert_(
            ExpertPartition{config.gate.num_experts, transport.world().size}.first(transport.world().rank)),
        tokens_(transport, exchange_config(config)),
        choices_(transport, choice_config(config)),
        ones_(at(config.max_tokens * width_), 1.0F) {}

  void dispatch(const Rows& tokens, const GateOutput<float>& kept, const CapacityPlan& /*plan*/) override {
    const std::int64_t t = kept.num_tokens;
    if (t > config_.max_tokens)
      throw Error(Errc::invalid_argument,
                  fmt::format("layer: {} tokens, but max_tokens is {}", t, config_.max_tokens));
    num_tokens_ = t;
    kept_width_ = kept.top_k;
    ids_.assign(at(t * width_), -1);
    weights_.assign(at(t * width_), 0.0F);
    for (std::int64_t i = 0; i < t; ++i) {
      std::copy_n(kept.ids.data() + i * kept.top_k, kept.top_k, ids_.data() + i * width_);
      std::copy_n(kept.weights.data() + i * kept.top_k, kept.top_k, weights_.data() + i * width_);
    }
    receive(tokens, rows_);
  }

  void combine(const float* weights, float* start, const MutableRows& out) override {
    const std::int64_t h = config_.hidden;
    const bool adds = start != nullptr;
    if (!adds) start = reinterpret_cast<float*>(sum_.at_least(num_tokens_ * h * 4));
    const float* const of = weights == nullptr ? ones_.data() : weights_.data();
    auto sent = tokens_.combine_send(first_rows(tokens_.expert_output()));
    tokens_.combine_recv(std::move(sent), {of, num_tokens_, width_}, {start, num_tokens_, h, DType::f32},
                         adds);
    workers_.run(blocks(num_tokens_), [&](std::int64_t block, int) {
      for (std::int64_t t = block * kTokens; t < std::min(num_tokens_, (block + 1) * kTokens); ++t)
        from_f32(config_.dtype, start + t * h, h, out.row(t));
    });
  }

  void redispatch(const Rows& gradients) override {
    std::vector<float> choices(at(num_tokens_ * 2 * width_));
    for (std::int64_t t = 0; t < num_tokens_; ++t)
      for (std::int64_t k = 0; k < width_; ++k) {
        choices[at((2 * t) * width_ + k)] = weights_[at(t * width_ + k)];
        choices[at((2 * t + 1) * width_ + k)] = static_cast<float>(ids_[at(t * width_ + k)]);
      }
    const Received got = choices_.dispatch_recv(choices_.dispatch_send(
        {.tokens = Rows(choices.data(), num_tokens_, 2 * width_, DType::f32)}, ids_view()));
    row_weights_.assign(at(total_), 0.0F);
    row_k_.assign(at(total_), -1);
    for (std::size_t e = 0; e < got.counts.size(); ++e)
      for (std::int64_t row = got.starts[e]; row < got.starts[e] + got.counts[e]; ++row) {
        const auto* const of = reinterpret_cast<const float*>(got.rows.row(row));
        const auto id = static_cast<float>(first_expert_ + static_cast<std::int32_t>(e));
        const auto k = std::find(of + width_, of + 2 * width_, id) - (of + width_);
        row_weights_[at(row)] = of[k];
        row_k_[at(row)] = static_cast<std::int32_t>(k);
      }
    receive(gradients, gradient_rows_);
  }

  void weight_gradients(const float* of_rows, std::span<float> grad_weights) override {
    const MutableRows to = choices_.expert_output();
    for (std::int64_t row = 0; row < total_; ++row) {
      if (row_k_[at(row)] < 0) continue;
      auto* const of = reinterpret_cast<float*>(to.row(row));
      std::fill(of, of + 2 * width_, 0.0F);
      of[row_k_[at(row)]] = of_rows[row];
    }
    std::vector<float> sums(at(num_tokens_ * 2 * width_));
    auto sent = choices_.combine_send(first_rows(to));
    choices_.combine_recv(std::move(sent), {ones_.data(), num_tokens_, width_},
                          {sums.data(), num_tokens_, 2 * width_, DType::f32});
    for (std::int64_t t = 0; t < num_tokens_; ++t)
      std::copy_n(sums.data() + 2 * t * width_, kept_width_, grad_weights.data() + t * kept_width_);
  }

  [[nodiscard]] ExpertRows layout() const override { return {starts_, counts_, true, total_}; }
  [[nodiscard]] Rows rows() const override { return {rows_.data(), total_, config_.hidden, config_.dtype}; }
  [[nodiscard]] Rows gradient_rows() const override {
    return {gradient_rows_.data(), total_, config_.hidden, config_.dtype};
  }
  [[nodiscard]] MutableRows results() override { return tokens_.expert_output(); }
  [[nodiscard]] const float* row_weights() const override { return row_weights_.data(); }

 private:
  static AllToAllConfig choice_config(const MoeLayerConfig& config) {
    AllToAllConfig exchange = exchange_config(config);
    exchange.hidden = 2 * exchange.top_k;
    exchange.token_dtype = exchange.payload = exchange.expert_dtype = DType::f32;
    return exchange;
  }

  /// Those of this step.
  [[nodiscard]] Rows first_rows(const MutableRows& of) const {
    return {of.data, total_, of.hidden, of.dtype, of.row_stride_bytes};
  }

  [[nodiscard]] View2<const std::int32_t> ids_view() const { return {ids_.data(), num_tokens_, width_}; }

  void receive(const Rows& tokens, RowMemory& memory) {
    const Received got = tokens_.dispatch_recv(tokens_.dispatch_send({.tokens = tokens}, ids_view()));
    total_ = got.starts.back();
    starts_.assign(got.starts.begin(), got.starts.end());
    counts_.assign(got.counts.begin(), got.counts.end());
    // The exchange's memory is used again by the gradients, and backward needs the rows.
    const std::int64_t bytes = config_.hidden * dtype_bytes(config_.dtype);
    std::byte* const to = memory.at_least(total_ * bytes);
    workers_.run(blocks(total_), [&](std::int64_t block, int) {
      for (std::int64_t row = block * kTokens; row < std::min(total_, (block + 1) * kTokens); ++row)
        std::memcpy(to + row * bytes, got.rows.row(row), at(bytes));
    });
  }

  const MoeLayerConfig& config_;
  Workers& workers_;
  std::int64_t width_;  ///< K of the exchange
  std::int32_t first_expert_;
  AllToAll tokens_, choices_;
  std::vector<float> ones_;
  std::int64_t num_tokens_ = 0, kept_width_ = 0, total_ = 0;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  std::vector<std::int64_t> starts_, counts_;
  RowMemory rows_, gradient_rows_, sum_;
  std::vector<float> row_weights_;
  std::vector<std::int32_t> row_k_;
};

}  // namespace

std::unique_ptr<RowExchange> make_local_exchange(const MoeLayerConfig& config, Workers& workers) {
  return std::make_unique<LocalExchange>(config, workers);
}

std::unique_ptr<RowExchange> make_rank_exchange(const MoeLayerConfig& config, Workers& workers,
                                                Transport& transport) {
  return std::make_unique<RankExchange>(config, workers, transport);
}

}  // namespace shunt::detail

#pragma once

#include <string>
#include <utility>
#include <vector>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/machine.h>
#include <shunt/cluster/model.h>
#include <shunt/plan/step_time.h>

namespace shunt::plan {

/// One kind of work of one microbatch on one GPU.
struct Work {
  std::string name;
  std::string tier;
  bool communication = false;
  double forward_us = 0;
  double backward_us = 0;         ///< Without what is computed again
  double weight_gradient_us = 0;  ///< Of backward_us
  double flops = 0;               ///< Forward and backward
  double needed_flops = 0;        ///< The same without what fused attention computes twice
  double bytes = 0;
};

/// Work of one microbatch by name, in the order in which it first came up.
class Works {
 public:
  Work& of(const std::string& name);
  [[nodiscard]] const std::vector<Work>& all() const noexcept { return works_; }
  void add(const Works& other, double times);

 private:
  std::vector<Work> works_;
};

/// What dispatch and combine of one layer cost.
struct ExchangePrice {
  double dispatch_us = 0, combine_us = 0;
  double dispatch_bytes = 0, combine_bytes = 0;  ///< Over `tier`
  std::string tier;
  double busy_share = 0;  ///< Of the multiprocessors, while they run
  ExchangePath path = ExchangePath::flat;
  ExchangeKernels kernels = ExchangeKernels::tiers;
  std::string source;
  std::vector<std::string> notes;
};

/// Times of layers on one GPU, for one microbatch.
class LayerTimer {
 public:
  /// `options` has its layout resolved and its defaults filled in.
  LayerTimer(const ModelSpec& model, const Machine& machine, const StepTimeOptions& options, double imbalance,
             const CostModel* fits);

  [[nodiscard]] Works layer(const LayerSpec& spec) const;
  /// Embedding (without a matrix product), or the head with its loss.
  [[nodiscard]] Works embedding() const;
  [[nodiscard]] Works head() const;
  [[nodiscard]] double send_bytes() const;  ///< Of one microbatch between stages
  [[nodiscard]] double tokens() const noexcept { return tokens_; }
  [[nodiscard]] const ExchangePrice& exchange() const noexcept { return exchange_; }

 private:
  class Builder;
  void price_exchange(const CostModel* fits);

  const ModelSpec& model_;
  const Machine& machine_;
  const StepTimeOptions& o_;
  double imbalance_;
  double tokens_;     ///< Of a microbatch on one rank, before tensor parallelism
  double share_ = 1;  ///< Of the tokens that a rank keeps between blocks: 1 / tp with sequence parallelism
  Group tensor_, experts_, expert_tensor_, context_;
  ExchangePrice exchange_;
};

}  // namespace shunt::plan

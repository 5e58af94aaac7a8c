#include "step_options.h"

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <shunt/cluster/placement.h>
#include <shunt/cluster/volume.h>

#include "stage.h"

namespace shunt::plan {

using detail::real;
using detail::refuse;

namespace {

void check_efficiency(const Efficiency& e) {
  for (const auto& [name, share] : {std::pair<const char*, double>{"matrix", e.matrix},
                                    {"grouped matrix", e.grouped_matrix},
                                    {"attention", e.attention},
                                    {"attention backward", e.attention_backward},
                                    {"elementwise", e.elementwise}})
    if (!(share >= 0.01 && share <= 1))
      refuse(fmt::format("{} efficiency {}: expected a share in [0.01, 1]", name, share));
  check_range("tile", e.tile, 16.0, 1024.0);
}

}  // namespace

void check_step(const ModelSpec& model, const Machine& machine, const StepTimeOptions& options) {
  const StepTimeOptions& o = options;
  if (o.layout.world() > machine.gpus()) {
    refuse(fmt::format("tp {} * cp {} * dp {} * pp {} = {} GPUs; {} hosts of {} have {}", o.layout.tp,
                       o.layout.cp, o.layout.dp, o.layout.pp, o.layout.world(), machine.hosts,
                       machine.node.name, machine.gpus()));
  }
  check_efficiency(o.efficiency);
  check_range("overlap of tensor parallelism", o.overlap_tensor, 0.0, 1.0);
  check_range("overlap of pipeline transfers", o.overlap_pipeline, 0.0, 1.0);
  check_range("overlap of gradients", o.overlap_gradients, 0.0, 1.0);
  check_range<std::int64_t>("exchange multiprocessors", o.exchange_sms, 0,
                            machine.node.gpu.sms > 0 ? machine.node.gpu.sms : 1024);
  check_range("power law", o.power_law, 0.0, 10.0);
  check_range("imbalance", o.imbalance, 1.0, real(std::max<std::int64_t>(model.experts, 1)));
  if (!o.expert_loads.empty()) {
    if (o.power_law > 0) refuse("expert loads and a power law at once: give one of them");
    if (static_cast<std::int64_t>(o.expert_loads.size()) != model.experts)
      refuse(fmt::format("{} expert loads: {} has {} experts", o.expert_loads.size(), model.name,
                         model.experts));
    for (const double load : o.expert_loads)
      if (!(load >= 0 && load < 1e15))
        refuse(fmt::format("expert load {}: expected a number in [0, 1e15)", load));
  }
  if (o.phase == Phase::training) {
    if (o.layout.redundant_experts != 0)
      refuse("redundant experts are for serving; training has one copy per edp rank");
    check_range<std::int64_t>("micro batch", o.training.micro_batch, 1, 1 << 20);
    check_range<std::int64_t>("microbatches", o.training.microbatches, 0, 1 << 20);
    check_range<std::int64_t>("sequence", o.training.sequence, 1, 1 << 26);
    check_range("imbalance", o.training.imbalance, 1.0, real(std::max<std::int64_t>(model.experts, 1)));
    if (o.training.sequence % o.layout.cp != 0)
      refuse(
          fmt::format("cp {} does not divide the sequence of {} tokens", o.layout.cp, o.training.sequence));
    return;
  }
  if (o.layout.cp != 1) refuse(fmt::format("cp {} is for training; serving takes 1", o.layout.cp));
  if (o.kv_element_bytes != 1 && o.kv_element_bytes != 2)
    refuse(fmt::format("KV element bytes {}: allowed are 1 and 2", o.kv_element_bytes));
  if (o.phase == Phase::prefill) {
    check_range<std::int64_t>("prompt", o.prompt, 1, 1 << 26);
    if (o.cached < 0 || o.cached >= o.prompt)
      refuse(fmt::format("cached {}: expected less than the prompt of {} tokens, and no negative number",
                         o.cached, o.prompt));
    check_range<std::int64_t>("batch tokens", o.batch_tokens, 1, 1 << 26);
    if (o.batch_tokens % (o.prompt - o.cached) != 0)
      refuse(fmt::format("batch tokens {}: expected a multiple of the {} new tokens of a prompt",
                         o.batch_tokens, o.prompt - o.cached));
    if (o.two_batches && o.batch_tokens < 2)
      refuse(fmt::format("two batches: a pass of {} tokens cannot be halved", o.batch_tokens));
    return;
  }
  check_range<std::int64_t>("sequences", o.sequences, 1, 1 << 20);
  check_range<std::int64_t>("context", o.context, 1, 1 << 26);
  check_range<std::int64_t>("drafts", o.drafts, 0, 64);
  check_range("acceptance", o.acceptance, 0.0, 1.0);
  if (o.acceptance > 0 && o.drafts == 0)
    refuse(fmt::format("acceptance {}: there are no drafts to accept", o.acceptance));
  if (o.sequences < o.layout.pp)
    refuse(fmt::format("sequences {}: pp {} needs one for each stage", o.sequences, o.layout.pp));
  if (o.two_batches && o.sequences < 2 * o.layout.pp)
    refuse(
        fmt::format("sequences {}: two batches on pp {} need at least {}, one for each half on every stage",
                    o.sequences, o.layout.pp, 2 * o.layout.pp));
}

namespace {

/// Of the busiest rank, where copies of the most loaded experts even loads out as EPLB places them.
double balanced_imbalance(const std::vector<double>& loads, const Layout& layout) {
  const std::vector<float> narrow(loads.begin(), loads.end());
  const auto places = static_cast<std::int64_t>(loads.size()) + layout.redundant_experts;
  const std::vector<double> ranks = rank_loads(place_balanced(narrow, {places, 1, 1, layout.ep}), narrow);
  const double total = std::accumulate(ranks.begin(), ranks.end(), 0.0);
  return std::max(1.0, *std::max_element(ranks.begin(), ranks.end()) * real(layout.ep) / total);
}

}  // namespace

double used_imbalance(const ModelSpec& model, const StepTimeOptions& options) {
  const StepTimeOptions& o = options;
  const double given = o.phase == Phase::training ? o.training.imbalance : o.imbalance;
  if (model.experts == 0) return 1;
  const auto ranks = static_cast<std::int32_t>(std::min(o.layout.ep, model.experts));
  if (!o.expert_loads.empty()) {
    if (std::accumulate(o.expert_loads.begin(), o.expert_loads.end(), 0.0) <= 0)
      refuse("expert loads: all are 0");
    if (o.layout.redundant_experts > 0) return balanced_imbalance(o.expert_loads, o.layout);
    return std::max(1.0, rank_imbalance(o.expert_loads, ranks));
  }
  // In a power law the order of loads is unknown: dealt in turn, the heaviest to different ranks.
  if (o.power_law > 0) {
    const std::vector<double> sorted = shunt::power_law_loads(model.experts, o.power_law);
    if (o.layout.redundant_experts > 0) return balanced_imbalance(sorted, o.layout);
    std::vector<double> sums(static_cast<std::size_t>(ranks), 0);
    for (std::size_t i = 0; i < sorted.size(); ++i) sums[i % sums.size()] += sorted[i];
    const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
    return std::max(1.0, *std::max_element(sums.begin(), sums.end()) * real(ranks) / total);
  }
  return given;
}

void use_published_formats(const ModelSpec& model, const Machine& machine, StepTimeOptions& options) {
  StepTimeOptions& o = options;
  const GpuSpec& gpu = machine.node.gpu;
  const auto math = [&](WeightFormat format) {
    switch (format) {
      case WeightFormat::fp8:
      case WeightFormat::fp8_block:
        return gpu.fp8_tflops > 0 ? MathType::fp8 : MathType::bf16;
      case WeightFormat::mxfp4:
      case WeightFormat::nvfp4:
        if (gpu.fp4_tflops > 0) return MathType::fp4;
        return gpu.fp8_tflops > 0 ? MathType::fp8 : MathType::bf16;
      case WeightFormat::bf16:
      case WeightFormat::int8:
      case WeightFormat::int4:
        break;
    }
    return MathType::bf16;
  };
  o.weights = model.weights;
  o.expert_weights = model.expert_weights;
  o.math = math(model.weights);
  o.expert_math = math(model.expert_weights);
}

}  // namespace shunt::plan

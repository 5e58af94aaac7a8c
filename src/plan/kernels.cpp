#include "kernels.h"

#include <algorithm>

#include <fmt/format.h>

#include <shunt/cluster/volume.h>
#include <shunt/plan/exchange.h>
#include <shunt/plan/memory.h>

namespace shunt::plan {
namespace {

constexpr std::int64_t kLowLatencyTopk = 11;
constexpr std::int64_t kLowLatencyTokens =
    1024;  // Its buffers grow with them; fewer than 256 are recommended
constexpr std::int64_t kNvlinkRanks = 64;

bool one_of(std::int64_t value, std::initializer_list<std::int64_t> values) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

bool nvlink(const Machine& machine) {
  return machine.node.gpu.has_scale_up && machine.node.gpu.scale_up.fabric == Fabric::nvlink;
}

std::string cannot_normal(const Machine& machine, const Group& group, std::int64_t slots) {
  if (!nvlink(machine)) return "needs NVLink inside a host";
  if (deepep_chunks(group.size, false) == nullptr)
    return fmt::format("has no configuration for {} ranks (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 144, 160)",
                       group.size);
  if (group.size > 8 && group.near != 8)
    return fmt::format("several domains must have 8 ranks each, not {}", group.near);
  if (slots % group.size != 0) return "ranks must divide experts";
  return {};
}

std::string cannot_low_latency(const ModelSpec& model, const Machine& machine, const Group& group,
                               std::int64_t slots, std::int64_t tokens) {
  if (!nvlink(machine)) return "needs NVIDIA GPUs with NVLink or InfiniBand";
  if (!one_of(model.hidden, {2048, 2560, 3072, 4096, 5120, 6144, 7168, 8192}))
    return fmt::format("is not built for hidden {}", model.hidden);
  if (model.top_k > kLowLatencyTopk)
    return fmt::format("top-k {} is more than {}", model.top_k, kLowLatencyTopk);
  if (tokens > kLowLatencyTokens)
    return fmt::format("{} tokens of a rank; its buffers are meant for fewer than 256, at most {} here",
                       tokens, kLowLatencyTokens);
  if (slots % group.size != 0) return "ranks must divide experts";
  if (group.domains > 1 && machine.node.nic.link.fabric == Fabric::efa) return "EFA has no IBGDA";
  return {};
}

std::string cannot_nvlink(const ModelSpec& model, const Machine& machine, const Group& group) {
  if (!nvlink(machine)) return "needs NVLink";
  if (group.domains > 1)
    return fmt::format("ep {} spans {} NVLink domains; it serves one", group.size, group.domains);
  if (group.size > kNvlinkRanks) return fmt::format("at most {} ranks", kNvlinkRanks);
  if (!one_of(model.top_k, {1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 22}))
    return fmt::format("is not built for top-k {}", model.top_k);
  return {};
}

}  // namespace

std::string cannot_serve(ExchangeKernels kernels, const ModelSpec& model, const Machine& machine,
                         const Group& group, std::int64_t slots, std::int64_t tokens,
                         const std::string& payload) {
  const bool deepep = kernels == ExchangeKernels::normal || kernels == ExchangeKernels::low_latency;
  if (deepep && payload != "bfloat16" && payload != "fp8_block128")
    return fmt::format("moves no {}", payload);
  if (kernels == ExchangeKernels::normal) return cannot_normal(machine, group, slots);
  if (kernels == ExchangeKernels::low_latency)
    return cannot_low_latency(model, machine, group, slots, tokens);
  if (kernels == ExchangeKernels::nvlink) return cannot_nvlink(model, machine, group);
  return {};
}

double kernel_buffer_bytes(ExchangeKernels kernels, const ModelSpec& model, std::int64_t ranks,
                           std::int64_t slots, std::int64_t tokens, std::int64_t sms,
                           const std::string& dispatch_payload, const std::string& combine_payload) {
  switch (kernels) {
    case ExchangeKernels::normal:
      return deepep_normal_bytes(ranks, model.hidden, sms);
    case ExchangeKernels::low_latency:
      return all_to_all_bytes(AllToAll::deepep_low_latency, slots, model.top_k, model.hidden, tokens, ranks,
                              1);
    case ExchangeKernels::nvlink:
      // [R, M] places for each payload: rows, ids, weights; and the results that others read.
      return static_cast<double>(ranks * tokens) *
             (row_bytes(dispatch_payload, model.hidden) + 8 * static_cast<double>(model.top_k) +
              row_bytes(combine_payload, model.hidden));
    case ExchangeKernels::automatic:
    case ExchangeKernels::tiers:
      break;
  }
  return 0;
}

GroupLimit group_limit(const ModelSpec& model, std::int64_t ranks, std::int64_t domains) {
  if (model.top_groups >= model.expert_groups) return GroupLimit::none;
  const auto even = [&](std::int64_t places) {
    return model.expert_groups % places == 0 || places % model.expert_groups == 0;
  };
  return even(ranks) && even(domains) ? GroupLimit::holds : GroupLimit::unknown;
}

std::string group_limit_note(const ModelSpec& model, std::int64_t ranks, std::int64_t domains) {
  return fmt::format(
      "tokens use {} of {} groups of experts, which {} ranks in {} domains do not share evenly: rows are "
      "counted as without this limit, which is more than are sent",
      model.top_groups, model.expert_groups, ranks, domains);
}

ExchangePrediction predict_exchange(const CostModel& fits, const ModelSpec& model, const Machine& machine,
                                    const KernelExchange& exchange) {
  CostCase c;
  c.regime = exchange.regime;
  c.variant = exchange.variant;
  c.hardware = machine.node.name;
  c.ranks = static_cast<std::int32_t>(exchange.ranks);
  c.nodes = static_cast<std::int32_t>(exchange.domains);
  c.hidden = model.hidden;
  c.experts = exchange.slots;
  c.topk = model.top_k;
  // Low-latency kernels send every selection, wherever it goes.
  if (exchange.limited && c.regime != "deepep_low_latency") {
    c.experts = model.experts;
    c.groups = static_cast<std::int32_t>(model.expert_groups);
    c.group_limit = static_cast<std::int32_t>(model.top_groups);
  }
  c.tokens_per_rank = exchange.tokens;
  c.imbalance = exchange.imbalance;
  c.sms = static_cast<std::int32_t>(exchange.sms);
  c.where = fmt::format("exchange of {} on {}", model.name, machine.node.name);
  const Device device = device_of(machine.node);
  ExchangePrediction prediction;
  c.op = "dispatch";
  c.payload = exchange.dispatch_payload;
  prediction.dispatch = fits.predict(c, device);
  c.op = "combine";
  c.payload = exchange.combine_payload;
  prediction.combine = fits.predict(c, device);
  return prediction;
}

}  // namespace shunt::plan

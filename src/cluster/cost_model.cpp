#include <shunt/cluster/cost_model.h>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/cluster/hardware.h>
#include <shunt/cluster/volume.h>
#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt {
namespace {

constexpr double kBytesPerUsOfGbPerS = 1e3;
/// Message of the low-latency kernels: index of the token, padded.
constexpr double kMessageHeader = 16;

bool one_of(const std::string& text, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* name) { return text == name; });
}

}  // namespace

Device device_of(const NodeSpec& node) {
  Device device;
  device.name = node.name;
  device.gpu = node.gpu.name;
  device.scale_up_gb_per_s = node.gpu.has_scale_up ? node.gpu.scale_up.gb_per_s : node.gpu.pcie.gb_per_s;
  device.network_gb_per_s = node.network_gb_per_s_per_gpu();
  device.sms = node.gpu.sms;
  device.dies = node.gpu.dies;
  return device;
}

Device find_device(const std::string& name, const std::string& directory) {
  const std::vector<std::string> nodes = list_nodes(directory);
  std::string plain = name;
  std::replace(plain.begin(), plain.end(), '_', '-');
  if (plain.ends_with("-sxm")) plain.resize(plain.size() - 4);
  for (const std::string& candidate :
       {name, plain, "dgx-" + plain, "hgx-" + plain, plain + "-nvl72", plain + "-8"}) {
    if (std::find(nodes.begin(), nodes.end(), candidate) == nodes.end()) continue;
    const NodeSpec node = find_node(candidate, directory);
    Device device = device_of(node);
    device.name = name;
    return device;
  }
  std::vector<std::string> names = nodes;
  for (const std::string& gpu : list_gpus(directory)) {
    names.push_back(gpu);
    names.push_back(gpu + "_sxm");
  }
  throw Error(Errc::invalid_argument,
              fmt::format("hardware \"{}\" is neither a node preset nor the GPU of one; {}", name,
                          allowed_names(name, names)));
}

CostTerms cost_terms(const CostCase& c, const Device& device) {
  CostTerms t;
  t.latency = std::sqrt(static_cast<double>(device.dies));
  t.scale_up = device.scale_up_gb_per_s * kBytesPerUsOfGbPerS;
  t.network = device.network_gb_per_s * kBytesPerUsOfGbPerS;
  t.older =
      one_of(c.collected_with, {"sglang 0.5.6.post2", "nccl 2.23", "nccl 2.27.5", "nccl 2.28.9"}) ? 1 : 0;
  t.ranks = c.ranks;
  t.nodes = c.nodes;
  t.several_nodes = c.nodes > 1 ? 1 : 0;
  t.log_nodes = std::log2(t.nodes);
  t.gap = std::pow(t.ranks - 1, 0.8);
  t.message = c.message_bytes;
  t.far_bytes = t.message * (t.nodes - 1) / t.nodes;
  if (c.regime == "nccl") return t;

  t.tokens = static_cast<double>(c.tokens_per_rank);
  t.hidden = static_cast<double>(c.hidden);
  t.experts = static_cast<double>(c.experts);
  t.topk = static_cast<double>(c.topk);
  t.row = row_bytes(c.payload, c.hidden);
  const double all = t.tokens * t.topk;
  t.selections = all > 0 ? all * std::pow(1 - 1 / all, c.masked_draws) : 0;
  t.any = 1 - std::exp(-t.selections);
  const double busiest = c.imbalance;

  if (c.regime == "deepep_low_latency") {
    // Every selection is a row of its own. One thread block for each expert, several experts in a block where there
    // are more experts than multiprocessors.
    const double sms = device.sms > 0 ? device.sms : 132;
    const double groups = std::ceil(t.experts / sms);
    t.blocks = std::ceil(t.experts / groups);
    t.shared_block = groups > 1 ? 1 : 0;
    t.waves = std::ceil(t.tokens / t.blocks);
    t.row += kMessageHeader;
    t.near_bytes = t.selections * t.row * (t.ranks / t.nodes - 1) / t.ranks * busiest;
    t.far_bytes = t.selections * t.row * (t.nodes - 1) / t.nodes * busiest;
    t.selections *= busiest;
    return t;
  }
  const RoutedShape shape{c.ranks, c.nodes, c.experts, c.topk, c.node_limit, c.dealt_in_turn};
  const Destinations places =
      c.groups > 0 ? group_limited_destinations(c.ranks, c.nodes, c.experts, c.topk, c.groups, c.group_limit)
                   : expected_destinations(shape);
  t.rank_rows = places.ranks;
  t.node_rows = places.nodes;
  t.near_bytes = t.tokens * places.near_ranks * t.row * busiest;
  if (c.regime == "deepep_normal" || c.regime == "deepep_notify") {
    t.channels = std::max(1.0, c.sms / 2.0);
    t.rank_rows *= busiest;
    t.far_bytes = t.tokens * places.other_nodes * t.row * busiest;
  } else {
    t.far_bytes = t.tokens * places.other_ranks * t.row * busiest;
  }
  return t;
}

std::string shape_key(const CostCase& c) {
  if (c.regime == "nccl") return fmt::format("{} {}", c.payload, c.message_bytes);
  if (c.regime == "trtllm_nvlink_alltoall")
    return fmt::format("{} {}/{}/{}", c.expert_dtype, c.hidden, c.experts, c.topk);
  return fmt::format("{}/{}/{}", c.hidden, c.experts, c.topk);
}

std::string scale_key(const CostCase& c) {
  if (c.regime == "deepep_low_latency" || c.regime == "deepep_normal" || c.regime == "deepep_notify")
    return fmt::format("{} nodes", c.nodes);
  return fmt::format("{} ranks", c.ranks);
}

}  // namespace shunt

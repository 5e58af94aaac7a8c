#include <shunt/cluster/machine.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt {
namespace {

constexpr double kBytesPerUsOfGbPerS = 1e3;
// Shares of raw rates where a preset has no usable one.
constexpr double kHbmShare = 0.85;
constexpr double kScaleUpShare = 0.8;
constexpr double kPcieShare = 0.8;
constexpr double kNetworkShare = 0.92;
constexpr double kLaunchUs = 3;
/// A work request of a NIC, one queue: the fit of network_doubling over the messages of DeepEP stays below it.
constexpr double kMessageUs = 0.1;

/// NCCL's protocols: what starts one costs, a hop inside a domain, one between domains, and the share of the wire.
/// Source: tuning.cc of NCCL 2.28 (planner.md 2.8): LL gets half of a ring's rate, and 1 / 3.8 of a tree's.
struct Protocol {
  double base_us, near_us, far_us, share;
};
constexpr std::array<Protocol, 3> kRing = {{{6.6, 0.6, 2.7, 0.5}, {14, 1.9, 4.0, 0.92}, {8.4, 3.4, 14, 1}}};
constexpr std::array<Protocol, 3> kTree = {
    {{6.8, 0.6, 5.0, 0.25}, {14, 1.25, 8.5, 0.85}, {8.4, 4.0, 14, 0.92}}};

double real(std::int64_t value) {
  return static_cast<double>(value);
}

double rate_or(double usable, double raw, double share) {
  return usable > 0 ? usable : raw * share;
}

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

/// Bytes per microsecond of a rank's part of a ring: all members of a domain have their own NICs in it.
double ring_rate(const Machine& machine, const Group& group) {
  double rate = machine.scale_up.gb_per_s;
  if (group.domains > 1) {
    const double far = group.spine ? machine.spine.gb_per_s : machine.network.gb_per_s;
    rate = std::min(rate, real(group.near) * far);
  }
  return rate * kBytesPerUsOfGbPerS;
}

/// `rounds` passes around a ring (1: gather or scatter, 2: reduction and gather).
double ring_us(const Machine& machine, const Group& group, double bytes, double rounds) {
  const double n = real(group.size);
  const double steps = rounds * (n - 1);
  const double far_steps = group.domains > 1 ? rounds * real(group.domains - 1) : 0;
  const double wire = rounds * bytes * (n - 1) / n / ring_rate(machine, group);
  double best = 0;
  for (const Protocol& p : kRing) {
    const double us = p.base_us + (steps - far_steps) * p.near_us + far_steps * p.far_us + wire / p.share;
    best = best == 0 ? us : std::min(best, us);
  }
  return best;
}

double tree_us(const Machine& machine, const Group& group, double bytes) {
  const double wire = 2 * bytes / ring_rate(machine, group);
  double best = 0;
  for (const Protocol& p : kTree) {
    const double us = p.base_us +
                      2 * (real(group.near - 1) * p.near_us + std::log2(real(group.domains)) * p.far_us) +
                      wire / p.share;
    best = best == 0 ? us : std::min(best, us);
  }
  return best;
}

void check_bytes(double bytes) {
  if (!(bytes >= 0 && bytes < 1e18))
    refuse(fmt::format("a message of {} bytes: expected a number in [0, 1e18)", bytes));
}

const std::vector<std::string>& path_names() {
  static const std::vector<std::string> names = {"automatic", "flat", "hierarchical", "rail_aligned"};
  return names;
}

/// One of the three paths, with numbers that were checked.
ExchangeTime along(const Machine& machine, const Group& group, const ExchangeShape& s, ExchangePath path) {
  ExchangeTime e;
  e.path = path;
  const double rows = s.tokens * s.row * s.imbalance;
  const double n = real(group.size);
  const double near = real(group.near);
  const double domains = real(group.domains);
  const bool flat = path == ExchangePath::flat;
  double far_rows = 0;
  if (s.deduplicated) {
    e.near_bytes = rows * s.destinations.near_ranks;
    far_rows = flat ? s.destinations.other_ranks : s.destinations.other_nodes;
  } else {
    e.near_bytes = rows * s.topk * (near - 1) / n;
    far_rows = s.topk * (domains - 1) / domains;
  }
  e.far_bytes = rows * far_rows;
  if (!flat) {
    // What arrives once for a domain goes on to the ranks that want it. With the sender's index as the place of arrival
    // that place wants it only by chance; without, the first hop already ends at a rank that wants it.
    const double copies = s.deduplicated ? s.destinations.other_ranks : s.topk * (domains - 1) / domains;
    e.near_bytes +=
        rows * (path == ExchangePath::rail_aligned
                    ? copies * (near - 1) / near
                    : std::max(0.0, copies - (s.deduplicated ? s.destinations.other_nodes : copies)));
  }
  const bool keeps_rail = path == ExchangePath::rail_aligned;
  e.spine_bytes = group.spine || (!keeps_rail && group.domains > 1)
                      ? e.far_bytes * (keeps_rail ? 1 : (near - 1) / near)
                      : 0;
  if (group.spine) e.spine_bytes = e.far_bytes;
  e.messages = flat ? n - near : (domains - 1);
  const double near_rate = machine.scale_up.gb_per_s * kBytesPerUsOfGbPerS;
  const double far_rate = machine.network.gb_per_s * kBytesPerUsOfGbPerS;
  const double spine_rate = machine.spine.gb_per_s * kBytesPerUsOfGbPerS;
  e.near_us = e.near_bytes / near_rate;
  if (group.domains > 1) {
    e.far_us = std::max(e.far_bytes / far_rate, e.spine_bytes / spine_rate) + e.messages * machine.message_us;
    e.latency_us = machine.network.latency_us + (flat || group.near == 1 ? 0 : machine.scale_up.latency_us);
  } else {
    e.latency_us = n > 1 ? machine.scale_up.latency_us : 0;
  }
  return e;
}

}  // namespace

const char* tier_name(Tier tier) noexcept {
  switch (tier) {
    case Tier::hbm:
      return "hbm";
    case Tier::scale_up:
      return "scale_up";
    case Tier::pcie:
      return "pcie";
    case Tier::network:
      return "network";
    case Tier::spine:
      return "spine";
  }
  return "hbm";
}

std::int64_t Machine::domain() const noexcept {
  return std::min<std::int64_t>(node.domain_gpus, gpus());
}

Machine make_machine(const NodeSpec& node, const MachineOptions& options) {
  if (options.hosts < 1 || options.hosts > 65536)
    refuse(fmt::format("{} hosts of {}: expected a number in [1, 65536]", options.hosts, node.name));
  if (!(options.oversubscription >= 1 && options.oversubscription <= 64)) {
    refuse(fmt::format("oversubscription {}: expected bandwidth below over bandwidth above, in [1, 64]",
                       options.oversubscription));
  }
  if (options.pod_gpus < 0 || options.pod_gpus % node.gpus != 0) {
    refuse(fmt::format("pods of {} GPUs: expected a multiple of the {} GPUs of a {}", options.pod_gpus,
                       node.gpus, node.name));
  }
  Machine m;
  m.node = node;
  m.hosts = options.hosts;
  m.oversubscription = options.oversubscription;
  m.pod_gpus = options.pod_gpus;
  m.hbm = {node.gpu.hbm_gb_per_s * kHbmShare, 0};
  m.pcie = {rate_or(node.gpu.pcie.usable_gb_per_s, node.gpu.pcie.gb_per_s, kPcieShare), 5.7};
  m.scale_up = m.pcie;
  if (node.gpu.has_scale_up) {
    m.scale_up = {rate_or(node.gpu.scale_up.usable_gb_per_s, node.gpu.scale_up.gb_per_s, kScaleUpShare), 3.4};
  }
  const double raw = node.network_gb_per_s_per_gpu();
  const double usable = node.nic.usable_gb_per_s > 0 && node.nic.link.gb_per_s > 0
                            ? raw * node.nic.usable_gb_per_s / node.nic.link.gb_per_s
                            : raw * kNetworkShare;
  m.network = {usable, 14};
  m.spine = {usable / options.oversubscription, 14};
  m.message_us = kMessageUs;
  m.launch_us = kLaunchUs;
  return m;
}

Tier Group::tier(const Machine& machine) const noexcept {
  if (domains > 1) return spine ? Tier::spine : Tier::network;
  return machine.near_tier();
}

Group place_group(const Machine& machine, std::int64_t size, std::int64_t stride) {
  if (size < 1 || stride < 1 || size > (std::int64_t{1} << 24) || stride > (std::int64_t{1} << 24))
    refuse(fmt::format("a group of {} ranks with a stride of {}: both must be at least 1", size, stride));
  if (size * stride > machine.gpus()) {
    refuse(fmt::format("a group of {} ranks, every {} GPUs, needs {} GPUs; {} hosts of {} have {}", size,
                       stride, size * stride, machine.hosts, machine.node.name, machine.gpus()));
  }
  Group group;
  group.size = size;
  group.near = std::clamp<std::int64_t>(machine.domain() / stride, 1, size);
  group.domains = (size + group.near - 1) / group.near;
  group.spine = machine.pod_gpus > 0 && size * stride > machine.pod_gpus && group.domains > 1;
  return group;
}

double all_reduce_us(const Machine& machine, const Group& group, double bytes) {
  check_bytes(bytes);
  if (group.size == 1 || bytes == 0) return 0;
  return std::min(ring_us(machine, group, bytes, 2), tree_us(machine, group, bytes));
}

double all_gather_us(const Machine& machine, const Group& group, double bytes) {
  check_bytes(bytes);
  return group.size == 1 || bytes == 0 ? 0 : ring_us(machine, group, bytes, 1);
}

double reduce_scatter_us(const Machine& machine, const Group& group, double bytes) {
  return all_gather_us(machine, group, bytes);
}

double send_us(const Machine& machine, const Group& group, double bytes) {
  check_bytes(bytes);
  if (group.size == 1 || bytes == 0) return 0;
  const TierRate& tier =
      group.domains == 1 ? machine.scale_up : (group.spine ? machine.spine : machine.network);
  return machine.launch_us + tier.latency_us + bytes / (tier.gb_per_s * kBytesPerUsOfGbPerS);
}

const char* exchange_path_name(ExchangePath path) noexcept {
  return path_names()[static_cast<std::size_t>(path)].c_str();
}

ExchangePath parse_exchange_path(const std::string& name) {
  for (std::size_t i = 0; i < path_names().size(); ++i)
    if (path_names()[i] == name) return static_cast<ExchangePath>(i);
  refuse(fmt::format("exchange path \"{}\": {}", name, allowed_names(name, path_names())));
}

ExchangeTime exchange_time(const Machine& machine, const Group& group, const ExchangeShape& shape,
                           ExchangePath path) {
  for (const auto& [what, value] : {std::pair<const char*, double>{"tokens", shape.tokens},
                                    {"bytes of a row", shape.row},
                                    {"top-k", shape.topk}}) {
    if (!(value >= 0 && value < 1e12))
      refuse(fmt::format("exchange: {} {}: expected a number in [0, 1e12)", what, value));
  }
  if (!(shape.imbalance >= 1 && shape.imbalance <= 1e6))
    refuse(fmt::format("imbalance {}: the busiest rank has at least the mean load, so in [1, 1e6]",
                       shape.imbalance));
  if (group.domains == 1) return along(machine, group, shape, ExchangePath::flat);
  if (path != ExchangePath::automatic) return along(machine, group, shape, path);
  ExchangeTime best = along(machine, group, shape, ExchangePath::flat);
  for (const ExchangePath other : {ExchangePath::hierarchical, ExchangePath::rail_aligned}) {
    const ExchangeTime time = along(machine, group, shape, other);
    if (time.us() < best.us()) best = time;
  }
  return best;
}

}  // namespace shunt

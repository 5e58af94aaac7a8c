#pragma once

#include <cstdint>
#include <string>

#include <shunt/cluster/hardware.h>
#include <shunt/cluster/volume.h>

namespace shunt {

/// What bytes cross, from near to far.
enum class Tier {
  hbm,
  scale_up,  ///< NVLink, xGMI, a rack's NVLink domain
  pcie,      ///< Where a node has no scale-up fabric
  network,   ///< NIC and the switches of its rail
  spine      ///< Switches above the rails, which may be oversubscribed
};

/// hbm, scale_up, pcie, network, spine.
[[nodiscard]] const char* tier_name(Tier tier) noexcept;

/// What one GPU gets of a tier in one direction.
struct TierRate {
  double gb_per_s = 0;    ///< beta: what large transfers reach
  double latency_us = 0;  ///< alpha: of one message
};

/// Equal hosts and what programs reach of their data sheets.
struct Machine {
  NodeSpec node;
  std::int64_t hosts = 1;
  double oversubscription = 1;  ///< Of the spine: bandwidth below over bandwidth above
  std::int64_t pod_gpus = 0;    ///< GPUs that reach each other without the spine on one rail; 0: all
  TierRate hbm;
  TierRate scale_up;  ///< PCIe where the node has no scale-up fabric
  TierRate pcie;
  TierRate network;
  TierRate spine;
  double message_us = 0;  ///< Each further message of one GPU over the network: what keeps a NIC busy
  double launch_us = 0;   ///< One kernel in a stream or graph

  [[nodiscard]] std::int64_t gpus() const noexcept { return hosts * node.gpus; }
  /// GPUs of this machine that share one scale-up domain.
  [[nodiscard]] std::int64_t domain() const noexcept;
  [[nodiscard]] Tier near_tier() const noexcept {
    return node.gpu.has_scale_up ? Tier::scale_up : Tier::pcie;
  }
};

struct MachineOptions {
  std::int64_t hosts = 1;
  double oversubscription = 1;
  std::int64_t pod_gpus = 0;
};

/// Result: rates of the presets; `usable` where a preset has it, else the raw rate times a share (HBM 0.85, scale-up 0.8,
///         PCIe 0.8, network 0.92), and latencies of NCCL's tuner.
/// Errors: Errc::invalid_argument for hosts outside [1, 65536], oversubscription outside [1, 64], pods that the GPUs of a
///         host do not divide.
/// Source: shares: AIConfigurator (HBM 0.8 plus a constant), NCCL topo.h, the fits of docs/cost_model.md; latencies: NCCL
///         tuning.cc at 5067397c, Simple protocol.
[[nodiscard]] Machine make_machine(const NodeSpec& node, const MachineOptions& options);

/// Where the ranks of a parallel group lie, when ranks count up GPU by GPU and host by host.
struct Group {
  std::int64_t size = 1;
  std::int64_t near = 1;  ///< Ranks of it in one scale-up domain
  std::int64_t domains = 1;
  bool spine = false;  ///< Reaches beyond a pod

  /// The slowest tier between two of its ranks.
  [[nodiscard]] Tier tier(const Machine& machine) const noexcept;
};

/// Group of `size` ranks, each `stride` GPUs after the one before.
/// Errors: Errc::invalid_argument where it needs more GPUs than the machine has.
[[nodiscard]] Group place_group(const Machine& machine, std::int64_t size, std::int64_t stride);

/// Collectives over a group; `bytes` is the whole message (nccl-tests' size; what every rank has before a reduction or
/// after a gather). 0 for a group of one rank.
/// Source: rings of NCCL: base + (steps - steps between domains) alpha_near + steps between domains alpha_far + wire,
///         wire = share (n - 1) / n bytes / min(B_near, ranks in a domain * B_far), share 2 for all_reduce, else 1.
///         planner.md 2.8 has the constants, and the tree that all_reduce takes where it is faster.
[[nodiscard]] double all_reduce_us(const Machine& machine, const Group& group, double bytes);
[[nodiscard]] double all_gather_us(const Machine& machine, const Group& group, double bytes);
[[nodiscard]] double reduce_scatter_us(const Machine& machine, const Group& group, double bytes);
/// One message from a rank to the next of the group. Source: alpha + bytes / B of the tier.
[[nodiscard]] double send_us(const Machine& machine, const Group& group, double bytes);

/// How tokens reach experts on other ranks.
enum class ExchangePath {
  automatic,     ///< The fastest of the others; flat in one domain
  flat,          ///< Each rank sends each token to each rank with an expert of it
  hierarchical,  ///< Once to each domain, to a rank that needs it, which passes it on
  rail_aligned  ///< Once to each domain, to the rank with the sender's index, which passes it on: no spine inside a pod
};
/// automatic, flat, hierarchical, rail_aligned. Errors of the second: Errc::invalid_argument with the nearest.
[[nodiscard]] const char* exchange_path_name(ExchangePath path) noexcept;
[[nodiscard]] ExchangePath parse_exchange_path(const std::string& name);

/// One direction of one layer's exchange, on one rank.
struct ExchangeShape {
  double tokens = 0;  ///< That this rank brings
  double row = 0;     ///< Bytes of one row, with scales
  Destinations
      destinations;  ///< Of a token: expected_destinations() or counted_destinations(); nodes are domains
  bool deduplicated = true;  ///< One row for each distinct place; false: one for each selection
  double topk = 1;           ///< Read where not deduplicated
  double imbalance = 1;      ///< Load of the busiest rank over the mean: multiplies its rows
};

/// What one rank sends and how long that takes.
struct ExchangeTime {
  ExchangePath path = ExchangePath::flat;
  double near_bytes = 0;   ///< Over the scale-up tier, forwarded rows too
  double far_bytes = 0;    ///< Over its NIC
  double spine_bytes = 0;  ///< Of far_bytes, those that change rails or pods
  double messages = 0;     ///< To distinct peers
  double near_us = 0, far_us = 0, latency_us = 0;

  /// Tiers work at the same time: the slower one counts.
  [[nodiscard]] double us() const noexcept { return latency_us + (near_us > far_us ? near_us : far_us); }
};

/// Errors: Errc::invalid_argument for negative or non-finite numbers and imbalance below 1.
/// Source: docs/cost_model.md, "Exchange over tiers"; planner.md 2.8.
[[nodiscard]] ExchangeTime exchange_time(const Machine& machine, const Group& group,
                                         const ExchangeShape& shape, ExchangePath path);

}  // namespace shunt

#pragma once

#include <cstdint>
#include <string>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/cluster/hardware.h>
#include <shunt/cluster/machine.h>
#include <shunt/core/error.h>

#include "add_option.h"

namespace shunt::cli {

/// Options that name a cluster.
struct ClusterOptions {
  std::string node;
  MachineOptions machine;  ///< Its hosts are not read
  std::int64_t hosts = 0;  ///< 0: not given
  std::int64_t gpus = 0;   ///< Instead of hosts; 0: not given
};

inline void add_cluster(CLI::App& app, ClusterOptions& o, const std::string& default_node) {
  o.node = default_node;
  app.add_option("--node", o.node,
                 fmt::format("Host preset, or a path that ends in .toml ({})", default_node))
      ->type_name("NAME");
  add_whole(app, "--hosts", "Hosts (1)", o.hosts, 1, 1 << 16);
  add_whole(app, "--gpus", "GPUs, instead of --hosts", o.gpus, 1, 1 << 22);
  add_whole(app, "--pod-gpus", "GPUs whose rails end at the same leaf switches (all)", o.machine.pod_gpus, 1,
            1 << 22);
  add_text(app, "--oversubscription", "Of the spine: bandwidth below over bandwidth above (1)", "X",
           [&o](const std::string& option, const std::string& text) {
             o.machine.oversubscription = parse_number(option, text, 1, 64);
           });
}

/// Errors: as find_node and make_machine, and where --gpus do not fill hosts or come with --hosts.
[[nodiscard]] inline Machine cluster_of(const ClusterOptions& o) {
  const NodeSpec node = find_node(o.node, hardware_directory());
  if (o.hosts > 0 && o.gpus > 0)
    throw Error(Errc::invalid_argument,
                fmt::format("--hosts {} and --gpus {}: give one of them", o.hosts, o.gpus));
  MachineOptions machine = o.machine;
  machine.hosts = o.hosts > 0 ? o.hosts : 1;
  if (o.gpus > 0) {
    if (o.gpus % node.gpus != 0)
      throw Error(Errc::invalid_argument,
                  fmt::format("--gpus {}: hosts of {} have {} GPUs", o.gpus, node.name, node.gpus));
    machine.hosts = o.gpus / node.gpus;
  }
  return make_machine(node, machine);
}

}  // namespace shunt::cli

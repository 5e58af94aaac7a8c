#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "bootstrap.h"
#include "shm/segment.h"

namespace shunt {

/// Where the ranks of a job are that were started one by one, and the memory that those of a node share.
struct NodeMap {
  World world;
  std::unique_ptr<shm::Segment> segment;  ///< A slot for each rank of this node, in rank order
  /// Of this rank among those of the machine, which emulated hosts and containers share.
  std::int32_t machine_index = 0;
  bool oversubscribed = false;  ///< More ranks of this machine than CPUs they may run on
};

/// Collective. Ranks are on one node where they have the same host name (or value of SHUNT_NODE), machine and
/// namespace of processes, and can open each other's memory; ranks for which the last fails are nodes of their
/// own. Leaves the process's number in its slot.
[[nodiscard]] NodeMap map_nodes(Bootstrap& bootstrap, const std::function<const char*(const char*)>& get,
                                Deadline deadline);

}  // namespace shunt

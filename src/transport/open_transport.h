#pragma once

#include <memory>
#include <string>

#include <shunt/transport/launch.h>

#include "bootstrap.h"
#include "shm/segment.h"

namespace shunt {

/// What `auto` stands for; every other name as it is.
[[nodiscard]] std::string resolve_transport(const std::string& name, LaunchWay way, std::int32_t nodes);

/// Throws Errc::invalid_argument where the transport is not known, Errc::unavailable where ranks started this way
/// cannot have it on so many nodes.
void check_transport(const std::string& name, LaunchWay way, std::int32_t nodes);

/// How ranks of one node are placed.
struct NodePart {
  shm::Segment& segment;  ///< One slot for each rank of the node; for shm one for each rank of the world
  bool processes = true;
  bool oversubscribed = false;
};

/// Collective. The transport of a rank; world.nodes is filled in. Everything given must outlive it. `name` is
/// resolved and checked. `bootstrap` may be null where `name` is shm.
[[nodiscard]] std::unique_ptr<Transport> open_transport(const std::string& name, const LaunchOptions& options,
                                                        const World& world, const NodePart& node,
                                                        Bootstrap* bootstrap, Deadline deadline);

}  // namespace shunt

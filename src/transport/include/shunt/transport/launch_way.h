#pragma once

#include <shunt/transport/launch.h>

namespace shunt {

/// "local", "node", "rank", "mpi".
[[nodiscard]] const char* launch_way_name(LaunchWay way) noexcept;

}  // namespace shunt

#include <fmt/format.h>

#include <cstring>
#include <limits>

#include <shunt/core/error.h>
#include <shunt/transport/launch_way.h>

#include "environment.h"

namespace shunt {
namespace {

using Lookup = std::function<const char*(const char*)>;

constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kMostPort = 65535;

[[nodiscard]] const char* require(const Lookup& get, const char* name) {
  const char* text = get(name);
  if (text != nullptr && *text != '\0') return text;
  throw Error(
      Errc::invalid_argument,
      fmt::format("environment: {} is not set; with RANK and LOCAL_RANK also MASTER_ADDR, MASTER_PORT and "
                  "WORLD_SIZE must be set",
                  name));
}

/// Where ranks meet. torchrun's own store listens at MASTER_PORT, so the next port is taken there.
[[nodiscard]] std::int32_t meeting_port(const Lookup& get, std::int32_t master_port) {
  if (const char* own = get("SHUNT_PORT")) return parse_number("SHUNT_PORT", own, 1, kMostPort);
  const char* store = get("TORCHELASTIC_USE_AGENT_STORE");
  const bool taken = store != nullptr && std::strcmp(store, "True") == 0;
  return taken && master_port < kMostPort ? master_port + 1 : master_port;
}

[[nodiscard]] Launch rank_launch(const Lookup& get) {
  Launch launch;
  launch.way = LaunchWay::rank;
  launch.master_addr = require(get, "MASTER_ADDR");
  const auto port = parse_number("MASTER_PORT", require(get, "MASTER_PORT"), 1, kMostPort);
  launch.master_port = meeting_port(get, port);
  launch.world_size = parse_number("WORLD_SIZE", require(get, "WORLD_SIZE"), 1, kMost);
  launch.rank = parse_number("RANK", require(get, "RANK"), 0, launch.world_size - 1);
  launch.local_rank = parse_number("LOCAL_RANK", require(get, "LOCAL_RANK"), 0, launch.world_size - 1);
  if (const char* local_size = get("LOCAL_WORLD_SIZE")) {
    launch.local_size =
        parse_number("LOCAL_WORLD_SIZE", local_size, launch.local_rank + 1, launch.world_size);
  }
  return launch;
}

}  // namespace

const char* launch_way_name(LaunchWay way) noexcept {
  switch (way) {
    case LaunchWay::local:
      return "local";
    case LaunchWay::node:
      return "node";
    case LaunchWay::rank:
      return "rank";
    case LaunchWay::mpi:
      return "mpi";
  }
  return "";
}

Launch detect_launch(std::int32_t explicit_ranks, const Lookup& get) {
  if (explicit_ranks > 0) return {};
  if (get("RANK") != nullptr && get("LOCAL_RANK") != nullptr) return rank_launch(get);
  if (const RankEnvironment node = parse_rank_environment(get); node.present) {
    return {.way = LaunchWay::node,
            .world_size = node.world_size,
            .local_size = node.local_size,
            .node_rank = node.node_rank,
            .master_addr = node.master_addr,
            .master_port = meeting_port(get, node.master_port)};
  }
  const bool pmi = get("PMI_RANK") != nullptr && get("PMI_SIZE") != nullptr;
  if (get("OMPI_COMM_WORLD_SIZE") != nullptr || get("PMIX_RANK") != nullptr || pmi)
    return {.way = LaunchWay::mpi, .master_addr = {}};
  return {};
}

}  // namespace shunt

#include <fmt/format.h>

#include <optional>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

#include "bootstrap/local_bootstrap.h"
#include "local_run.h"
#include "open_transport.h"

namespace shunt {
namespace {

constexpr std::int32_t kMostRanks = 1024;

void check(const LaunchOptions& options) {
  if (options.ranks < 1 || options.ranks > kMostRanks) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} ranks; 1 to {} are allowed on one machine", options.ranks, kMostRanks));
  }
  if (options.nodes < 1 || options.ranks % options.nodes != 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} nodes for {} ranks; a divisor of the number of ranks is allowed",
                            options.nodes, options.ranks));
  }
}

/// World of a rank of this machine, which pretends to be several nodes of equal size.
[[nodiscard]] World local_world(const LaunchOptions& options, std::int32_t rank) {
  const std::int32_t share = options.ranks / options.nodes;
  World world{.rank = rank, .size = options.ranks, .local_rank = rank % share, .node = rank / share};
  if (options.nodes == 1) return world;
  for (std::int32_t one = 0; one < options.ranks; ++one) world.nodes.push_back(one / share);
  return world;
}

}  // namespace

std::vector<RankOutcome> run_ranks(const LaunchOptions& options, const std::function<int(Transport&)>& body) {
  check(options);
  const std::string name = resolve_transport(options.transport, LaunchWay::local, options.nodes);
  check_transport(name, LaunchWay::local, options.nodes);
  const Deadline start = Clock::now() + options.start_deadline;
  const bool apart = name != "shm" && options.nodes > 1;
  shm::Segment segment(options.ranks);
  std::vector<std::unique_ptr<shm::Segment>> nodes;
  for (std::int32_t node = 0; apart && node < options.nodes; ++node)
    nodes.push_back(std::make_unique<shm::Segment>(options.ranks / options.nodes));

  LocalRun launch{.pin = options.pin,
                  .mode = options.mode,
                  .segment = segment,
                  .nodes = nodes,
                  .cpus = allowed_cpus(),
                  .run = {}};
  launch.run = [&](std::int32_t rank) {
    const World world = local_world(options, rank);
    const bool processes = options.mode == RankMode::processes;
    std::optional<LocalBootstrap> bootstrap;
    if (apart) bootstrap.emplace(segment, world, processes, launch.oversubscribed(), start);
    const NodePart part{.segment = apart ? *nodes[static_cast<std::size_t>(world.node)] : segment,
                        .processes = processes,
                        .oversubscribed = launch.oversubscribed()};
    const auto transport = open_transport(name, options, world, part, apart ? &*bootstrap : nullptr, start);
    return body(*transport);
  };
  return options.mode == RankMode::threads ? run_threads(launch) : run_children(launch);
}

int combined_status(const std::vector<RankOutcome>& outcomes) {
  int by_peer = 0;
  int by_signal = 0;
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.exit_status == 0) continue;
    const bool follows = outcome.code == Errc::peer_lost || outcome.code == Errc::timeout;
    if (outcome.signal == 0 && !follows) return outcome.exit_status;
    int& first = outcome.signal != 0 ? by_signal : by_peer;
    if (first == 0) first = outcome.exit_status;
  }
  return by_peer != 0 ? by_peer : by_signal;
}

}  // namespace shunt

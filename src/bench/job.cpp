#include "job.h"

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {

// Until LaunchSession is there: ranks of this machine only.
Job::Job(std::int32_t explicit_ranks, const std::function<const char*(const char*)>& get) {
  if (explicit_ranks > 0) return;
  const RankEnvironment environment = parse_rank_environment(get);
  if (!environment.present) return;
  if (environment.nodes() > 1)
    throw Error(Errc::unavailable,
                fmt::format("WORLD_SIZE {} over WORLD_LOCAL_SIZE {} asks for {} nodes: this needs a network "
                            "transport, which this build does not have",
                            environment.world_size, environment.local_size, environment.nodes()));
  launch_.world_size = environment.local_size;
}

Job::~Job() = default;

bool Job::leads() const noexcept {
  return true;
}

std::int32_t Job::ranks() const noexcept {
  return launch_.world_size;
}

bool Job::reports(const World& world) const noexcept {
  return world.rank == 0;
}

std::vector<RankOutcome> Job::run(const LaunchOptions& options, const std::function<int(Transport&)>& body) {
  LaunchOptions here = options;
  if (here.transport == "auto") here.transport = "shm";
  return run_ranks(here, body);
}

}  // namespace shunt::bench

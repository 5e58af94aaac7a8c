#include "job.h"

#include <algorithm>
#include <cstdlib>

namespace shunt::bench {
namespace {

/// What launchers say of the number of processes on this machine.
std::int32_t find_processes(const Launch& launch, const std::function<const char*(const char*)>& get) {
  if (launch.way == LaunchWay::local || launch.way == LaunchWay::node) return 1;
  for (const char* name : {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"})
    if (const char* text = get(name); text != nullptr && std::atoi(text) > 0) return std::atoi(text);
  return 1;
}

}  // namespace

Job::Job(std::int32_t explicit_ranks, const std::function<const char*(const char*)>& get)
    : launch_(detect_launch(explicit_ranks, get)),
      processes_here_(find_processes(launch_, get)),
      session_(std::make_unique<LaunchSession>(launch_)) {}

Job::~Job() = default;

bool Job::leads() const noexcept {
  return session_->leads();
}

std::int32_t Job::ranks() const noexcept {
  return session_->world_size();
}

bool Job::reports(const World& world) const noexcept {
  switch (launch_.way) {
    case LaunchWay::local:
      return world.rank == 0;
    case LaunchWay::node:
      return world.rank == launch_.node_rank * launch_.local_size;
    case LaunchWay::rank:
    case LaunchWay::mpi:
      return true;
  }
  return false;
}

std::vector<RankOutcome> Job::run(const LaunchOptions& options, const std::function<int(Transport&)>& body) {
  return session_->run(options, body);
}

}  // namespace shunt::bench

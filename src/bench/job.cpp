#include "job.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

/// Takes a whole number from the front of `text`; -1, and `text` as it was, where there is none.
std::int32_t take_number(std::string_view& text) {
  std::int32_t value = -1;
  const char* const begin = text.data();
  const auto [rest, error] = std::from_chars(begin, begin + text.size(), value);
  if (error != std::errc{} || value < 0) return -1;
  text.remove_prefix(static_cast<std::size_t>(rest - begin));
  return value;
}

/// The whole of `text` as a number; -1 where it is none.
std::int32_t parse_number(const char* text) {
  if (text == nullptr) return -1;
  std::string_view rest(text);
  const std::int32_t value = take_number(rest);
  return rest.empty() ? value : -1;
}

/// Entry `node` of Slurm's list of tasks per node, such as "4(x2),3"; -1 where there is none.
std::int32_t slurm_tasks(const char* list, std::int32_t node) {
  if (list == nullptr || node < 0) return -1;
  std::string_view rest(list);
  while (!rest.empty()) {
    const std::int32_t tasks = take_number(rest);
    std::int32_t nodes = 1;
    if (rest.starts_with("(x")) {
      rest.remove_prefix(2);
      nodes = take_number(rest);
      if (!rest.starts_with(')')) return -1;
      rest.remove_prefix(1);
    }
    if (tasks < 0 || nodes < 0) return -1;
    if (node < nodes) return tasks;
    node -= nodes;
    if (!rest.starts_with(',')) return -1;
    rest.remove_prefix(1);
  }
  return -1;
}

/// What launchers say of the number of processes on this machine. mpirun inside a job of Slurm sets variables of
/// its own, which come first.
std::int32_t find_processes(const Launch& launch, const std::function<const char*(const char*)>& get) {
  if (launch.way == LaunchWay::local || launch.way == LaunchWay::node) return 1;
  for (const char* name : {"LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"})
    if (const std::int32_t processes = parse_number(get(name)); processes > 0) return processes;
  return std::max(1, slurm_tasks(get("SLURM_STEP_TASKS_PER_NODE"), parse_number(get("SLURM_NODEID"))));
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

void Job::check_nodes(std::int32_t nodes) const {
  if (local() || nodes == 1) return;
  throw Error(Errc::invalid_argument,
              fmt::format("--nodes is {}, but these ranks are a job, and its nodes are the hosts that it was "
                          "started on; allowed: 1, or --nodes together with --ranks, without a launcher",
                          nodes));
}

std::vector<RankOutcome> Job::run(const LaunchOptions& options, const std::function<int(Transport&)>& body) {
  return session_->run(options, body);
}

}  // namespace shunt::bench

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

#include "bootstrap/node_map.h"
#include "bootstrap/tcp_bootstrap.h"
#include "local_run.h"
#include "net/networks.h"
#include "open_transport.h"

namespace shunt {
namespace {

/// Tells jobs apart that meet at one port by accident, as far as the environment says.
[[nodiscard]] std::uint64_t job_cookie() {
  std::string key = "shunt";
  for (const char* name : {"SHUNT_JOB", "SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"}) {
    const char* value = std::getenv(name);
    key += fmt::format("\n{}", value == nullptr ? "" : value);
  }
  return std::hash<std::string>{}(key);
}

}  // namespace

struct LaunchSession::Impl {
  Launch launch;
  std::unique_ptr<Bootstrap> mpi;               ///< For the whole session
  std::uint32_t generation = 0;                 ///< Calls of run() so far
  RankOutcome failure;                          ///< Of this process, where it is a rank of MPI
  int exceptions = std::uncaught_exceptions();  ///< When the session began

  [[nodiscard]] TcpMeeting meeting(std::int32_t rank) const {
    return {.address = launch.master_addr,
            .port = launch.master_port,
            .rank = rank,
            .size = launch.world_size,
            .generation = generation,
            .cookie = job_cookie()};
  }
  std::vector<RankOutcome> run_node(const LaunchOptions& options,
                                    const std::function<int(Transport&)>& body) const;
  RankOutcome run_here(const LaunchOptions& options, const std::function<int(Transport&)>& body);
};

/// The ranks of this node, as children of this process.
std::vector<RankOutcome> LaunchSession::Impl::run_node(const LaunchOptions& options,
                                                       const std::function<int(Transport&)>& body) const {
  const std::int32_t share = launch.local_size;
  const std::int32_t num_nodes = launch.world_size / share;
  const std::string name = resolve_transport(options.transport, launch.way, num_nodes);
  check_transport(name, launch.way, num_nodes);
  const Deadline start = Clock::now() + options.start_deadline;
  shm::Segment segment(share);
  const std::vector<std::unique_ptr<shm::Segment>> no_other;
  LocalRun local{.pin = options.pin,
                 .mode = RankMode::processes,
                 .first_rank = launch.node_rank * share,
                 .part_of_world = num_nodes > 1,
                 .segment = segment,
                 .nodes = no_other,
                 .cpus = allowed_cpus(),
                 .run = {}};
  local.run = [&](std::int32_t index) {
    World world{.rank = launch.node_rank * share + index,
                .size = launch.world_size,
                .local_rank = index,
                .node = launch.node_rank};
    for (std::int32_t rank = 0; num_nodes > 1 && rank < launch.world_size; ++rank)
      world.nodes.push_back(rank / share);
    TcpBootstrap bootstrap(meeting(world.rank), start);
    const NodePart part{.segment = segment, .processes = true, .oversubscribed = local.oversubscribed()};
    const auto transport = open_transport(name, options, world, part, &bootstrap, start);
    return body(*transport);
  };
  return run_children(local);
}

/// The rank that this process is.
RankOutcome LaunchSession::Impl::run_here(const LaunchOptions& options,
                                          const std::function<int(Transport&)>& body) {
  RankOutcome outcome;
  outcome.rank = mpi != nullptr ? mpi->rank() : launch.rank;
  shm::RankSlot* slot = nullptr;
  NodeMap map;  // Outlives what ends in the block below
  // This process goes on after the run, and may run again without a pin.
  struct Unpin {
    std::vector<int> cpus = allowed_cpus();
    ~Unpin() { run_on(cpus); }
  } const before;
  try {
    const Deadline start = Clock::now() + options.start_deadline;
    std::unique_ptr<TcpBootstrap> tcp;
    if (mpi == nullptr) tcp = std::make_unique<TcpBootstrap>(meeting(launch.rank), start);
    Bootstrap& bootstrap = mpi != nullptr ? *mpi : static_cast<Bootstrap&>(*tcp);
    map = map_nodes(
        bootstrap, [](const char* name) { return std::getenv(name); }, start);
    slot = &map.segment->slot(map.world.local_rank);
    const std::string name = resolve_transport(options.transport, launch.way, map.world.num_nodes());
    check_transport(name, launch.way, map.world.num_nodes());
    // By its place on the machine: ranks of emulated hosts or containers would all get the first CPU.
    if (options.pin) pin_to(before.cpus, map.world.rank, map.machine_index);
    const NodePart part{.segment = *map.segment, .processes = true, .oversubscribed = map.oversubscribed};
    const auto transport = open_transport(name, options, map.world, part, &bootstrap, start);
    outcome.exit_status = body(*transport);
  } catch (const Error& error) {
    outcome.exit_status = exit_status(error.code());
    outcome.code = error.code();
    outcome.message = error.what();
  } catch (const std::exception& error) {
    outcome.exit_status = 1;
    outcome.message = error.what();
  }
  if (slot != nullptr) {
    const bool well = outcome.message.empty();
    shm::end_state(*slot, well ? shm::RankState::finished : shm::RankState::failed);
  }
  return outcome;
}

LaunchSession::LaunchSession(const Launch& launch) : impl_(std::make_unique<Impl>()) {
  impl_->launch = launch;
  if (launch.way != LaunchWay::mpi) return;
  mpi_begin();
  impl_->mpi = make_mpi_bootstrap();
  impl_->launch.world_size = impl_->mpi->size();
  impl_->launch.rank = impl_->mpi->rank();
}

LaunchSession::~LaunchSession() {
  if (impl_->mpi == nullptr) return;
  if (impl_->failure.exit_status != 0) {
    // The other ranks may wait for this one, also in MPI's own end, which has no deadline.
    if (!impl_->failure.message.empty())
      std::fprintf(stderr, "shunt: rank %d ends the job: %s\n", impl_->failure.rank,
                   impl_->failure.message.c_str());
    std::fflush(nullptr);
    mpi_abort(impl_->failure.exit_status);
  }
  if (std::uncaught_exceptions() > impl_->exceptions) {
    std::fprintf(stderr, "shunt: rank %d ends the job: an error outside of its runs\n", impl_->launch.rank);
    std::fflush(nullptr);
    mpi_abort(1);
  }
  impl_->mpi.reset();
  mpi_end();
}

LaunchWay LaunchSession::way() const noexcept {
  return impl_->launch.way;
}

std::int32_t LaunchSession::world_size() const noexcept {
  return impl_->launch.world_size;
}

bool LaunchSession::leads() const noexcept {
  return impl_->launch.rank == 0 && impl_->launch.node_rank == 0;
}

std::vector<RankOutcome> LaunchSession::run(const LaunchOptions& options,
                                            const std::function<int(Transport&)>& body) {
  if (impl_->launch.way == LaunchWay::local) return run_ranks(options, body);
  ++impl_->generation;
  if (impl_->launch.way == LaunchWay::node) return impl_->run_node(options, body);
  const RankOutcome outcome = impl_->run_here(options, body);
  if (outcome.exit_status != 0 && impl_->failure.exit_status == 0) impl_->failure = outcome;
  return {outcome};
}

}  // namespace shunt

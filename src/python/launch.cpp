// Worlds from Python: forked ranks, ranks that join a job, a rank by itself.
#include <shunt/transport/launch_way.h>

#include <fmt/format.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <shunt/core/error.h>

#include "errors.h"
#include "launch.h"
#include "parked.h"
#include "world.h"

namespace nb = nanobind;

namespace shunt::python {
namespace {

[[nodiscard]] LaunchOptions options_of(std::int32_t ranks, std::int32_t nodes, const std::string& transport,
                                       const std::string& provider, bool pin, double start_deadline) {
  if (!(start_deadline >= 0.001 && start_deadline <= 1e6))
    refuse(fmt::format("start_deadline is {} s; 0.001 to 1000000 are allowed", start_deadline));
  LaunchOptions options;
  options.ranks = ranks;
  options.nodes = nodes;
  options.transport = transport;
  options.provider = provider;
  options.pin = pin;
  options.start_deadline = std::chrono::milliseconds(static_cast<std::int64_t>(start_deadline * 1000));
  return options;
}

/// Calls function(world) as one rank. It returns None, or a pair (code, message) of the error that ended it.
int run_function(const nb::callable& function, Transport& transport) {
  const auto state = std::make_shared<WorldState>(transport);
  // The transport goes when this returns, so what uses it goes before, whoever still holds it in Python.
  struct End {
    WorldState& state;
    ~End() { state.end(); }
  } const end{*state};
  const nb::object failure = function(PyWorld(state));
  if (failure.is_none()) return 0;
  const auto code = code_of(nb::cast<std::string>(failure[0]));
  throw Error(code, nb::cast<std::string>(failure[1]));
}

[[nodiscard]] nb::list list_of(const std::vector<RankOutcome>& outcomes) {
  nb::list result;
  for (const RankOutcome& outcome : outcomes)
    result.append(nb::make_tuple(outcome.rank, outcome.exit_status, outcome.signal, errc_name(outcome.code),
                                 outcome.message));
  return result;
}

/// Forks the ranks and returns when all have ended. Holds the GIL all the time: only a process that does nothing else
/// calls this (see _launch.py).
[[nodiscard]] std::vector<RankOutcome> fork_ranks(
    const std::function<std::vector<RankOutcome>(const Parked::Body&)>& run, const nb::callable& function) {
  struct Forking {
    Forking() { PyOS_BeforeFork(); }
    ~Forking() { PyOS_AfterFork_Parent(); }
  } const forking;
  const pid_t parent = getpid();
  return run([&](Transport& transport) {
    if (getpid() != parent) PyOS_AfterFork_Child();
    return run_function(function, transport);
  });
}

[[nodiscard]] nb::list run_local(const nb::callable& function, std::int32_t ranks, std::int32_t nodes,
                                 const std::string& transport, const std::string& provider, bool pin,
                                 double start_deadline) {
  const LaunchOptions options = options_of(ranks, nodes, transport, provider, pin, start_deadline);
  return list_of(fork_ranks([&](const Parked::Body& body) { return run_ranks(options, body); }, function));
}

[[nodiscard]] Launch environment() {
  return detect_launch(0, [](const char* name) { return std::getenv(name); });
}

/// This process's session in the job of its environment. It stays to the end of the process: later worlds of the job
/// are further runs of it.
LaunchSession& session() {
  static pid_t owner = 0;
  static std::unique_ptr<LaunchSession> one;
  if (owner != getpid()) {
    static_cast<void>(one.release());
    one = std::make_unique<LaunchSession>(environment());
    owner = getpid();
  }
  return *one;
}

/// For jobs in which this process starts the ranks of its node, or is a rank of MPI.
[[nodiscard]] nb::list run_job(const nb::callable& function, const std::string& transport,
                               const std::string& provider, bool pin, double start_deadline) {
  const LaunchOptions options = options_of(1, 1, transport, provider, pin, start_deadline);
  LaunchSession& job = session();
  if (job.way() == LaunchWay::node)
    return list_of(fork_ranks([&](const Parked::Body& body) { return job.run(options, body); }, function));
  std::vector<RankOutcome> outcomes;
  {
    const nb::gil_scoped_release release;
    outcomes = job.run(options, [&](Transport& transport_of_rank) {
      const nb::gil_scoped_acquire acquire;
      return run_function(function, transport_of_rank);
    });
  }
  return list_of(outcomes);
}

[[nodiscard]] PyWorld parked_world(Parked::Run run) {
  std::shared_ptr<WorldState> state;
  {
    const nb::gil_scoped_release release;
    state = std::make_shared<WorldState>(std::make_unique<Parked>(std::move(run)));
  }
  return PyWorld(std::move(state));
}

[[nodiscard]] PyWorld join(std::int32_t rank, std::int32_t size, const std::string& address,
                           std::int32_t port, const std::string& transport, const std::string& provider,
                           bool pin, double start_deadline) {
  if (size < 1 || rank < 0 || rank >= size)
    refuse(fmt::format("World.join: rank {} of {} ranks; 0 <= rank < size is needed", rank, size));
  if (address.empty() || port < 1 || port > 65535)
    refuse(fmt::format("World.join: address \"{}\", port {}; a name and a port from 1 to 65535 are needed",
                       address, port));
  const LaunchOptions options = options_of(size, 1, transport, provider, pin, start_deadline);
  Launch launch;
  launch.way = LaunchWay::rank;
  launch.world_size = size;
  launch.rank = rank;
  launch.master_addr = address;
  launch.master_port = port;
  const auto own = std::make_shared<LaunchSession>(launch);
  return parked_world([own, options](const Parked::Body& body) { return own->run(options, body); });
}

[[nodiscard]] PyWorld from_environment(const std::string& transport, const std::string& provider, bool pin,
                                       double start_deadline) {
  const Launch launch = environment();
  if (launch.way != LaunchWay::rank)
    throw Error(
        Errc::unavailable,
        fmt::format(
            "World.from_env: this process was not started as one rank by torchrun (RANK and LOCAL_RANK "
            "are needed){}",
            launch.way == LaunchWay::mpi ? "; under an MPI launcher use shunt.launch" : ""));
  const LaunchOptions options = options_of(launch.world_size, 1, transport, provider, pin, start_deadline);
  LaunchSession& job = session();
  return parked_world([&job, options](const Parked::Body& body) { return job.run(options, body); });
}

[[nodiscard]] PyWorld single() {
  LaunchOptions options;
  options.ranks = 1;
  options.mode = RankMode::threads;
  return parked_world([options](const Parked::Body& body) { return run_ranks(options, body); });
}

[[nodiscard]] std::string launch_way() {
  return launch_way_name(environment().way);
}

[[nodiscard]] nb::list transports() {
  nb::list result;
  for (const TransportInfo& one : transport_registry())
    result.append(nb::make_tuple(one.name, one.available, one.reason));
  return result;
}

/// The kernel kills this process when the thread that forked it ends.
void die_with_parent(int parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // It died before the line above.
}

}  // namespace

void bind_launch(nb::module_& module) {
  module.def("run_local", &run_local, nb::arg("function"), nb::arg("ranks"), nb::arg("nodes"),
             nb::arg("transport"), nb::arg("provider"), nb::arg("pin"), nb::arg("start_deadline"));
  module.def("run_job", &run_job, nb::arg("function"), nb::arg("transport"), nb::arg("provider"),
             nb::arg("pin"), nb::arg("start_deadline"));
  module.def("join", &join, nb::arg("rank"), nb::arg("size"), nb::arg("address"), nb::arg("port"),
             nb::arg("transport"), nb::arg("provider"), nb::arg("pin"), nb::arg("start_deadline"));
  module.def("from_environment", &from_environment, nb::arg("transport"), nb::arg("provider"), nb::arg("pin"),
             nb::arg("start_deadline"));
  module.def("single", &single);
  module.def("launch_way", &launch_way);
  module.def("transports", &transports);
  module.def("die_with_parent", &die_with_parent, nb::arg("parent"));
}

}  // namespace shunt::python

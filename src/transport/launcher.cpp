#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <system_error>
#include <thread>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/transport/launch.h>

#include "shm/shm_transport.h"

namespace shunt {
namespace {

using shm::RankSlot;
using shm::RankState;
using shm::Segment;
using shm::ShmTransport;

constexpr std::int32_t kMostRanks = 1024;

struct LocalRun {
  const LaunchOptions& options;
  const std::function<int(Transport&)>& body;
  Segment& segment;
  Deadline start;
  std::vector<int> cpus;  ///< That this process may run on; before any pinning
};

[[nodiscard]] std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
    }
  }
  return cpus;
}

void pin(const LocalRun& launch, std::int32_t rank) {
  if (launch.cpus.empty()) throw Error(Errc::unavailable, "pin: the CPUs of this process could not be read");
  const int cpu = launch.cpus[static_cast<std::size_t>(rank) % launch.cpus.size()];
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof set, &set) != 0) {
    throw Error(Errc::unavailable,
                fmt::format("rank {}: pin to CPU {}: {}", rank, cpu, std::strerror(errno)));
  }
}

/// A rank's place among the nodes that this machine pretends to be.
[[nodiscard]] World local_world(const LaunchOptions& options, std::int32_t rank) {
  const std::int32_t per_node = options.ranks / options.nodes;
  World world{.rank = rank, .size = options.ranks, .local_rank = rank % per_node, .node = rank / per_node};
  if (options.nodes > 1)
    for (std::int32_t other = 0; other < options.ranks; ++other) world.nodes.push_back(other / per_node);
  return world;
}

/// Runs one rank in this process or thread and leaves its end in its slot.
void run_rank(const LocalRun& launch, std::int32_t rank) {
  RankSlot& slot = launch.segment.slot(rank);
  const auto fail = [&](int status, const char* message) {
    const std::size_t bytes = std::min<std::size_t>(std::strlen(message), shm::kMessageBytes);
    std::memcpy(slot.message, message, bytes);
    slot.message_bytes = static_cast<std::int32_t>(bytes);
    slot.exit_status = status;
    shm::end_state(slot, RankState::failed);
  };
  try {
    if (launch.options.pin) pin(launch, rank);
    const World world = local_world(launch.options, rank);
    const bool oversubscribed = launch.cpus.size() < static_cast<std::size_t>(launch.options.ranks);
    ShmTransport transport(launch.segment, world, launch.options.mode == RankMode::processes, oversubscribed,
                           launch.start);
    slot.exit_status = launch.body(transport);
    shm::end_state(slot, RankState::finished);
  } catch (const Error& error) {
    slot.error = 1 + static_cast<std::int32_t>(error.code());
    fail(exit_status(error.code()), error.what());
  } catch (const std::exception& error) {
    fail(1, error.what());
  } catch (...) {
    fail(1, "the rank's function threw something that is not an exception");
  }
}

[[nodiscard]] RankOutcome reported_outcome(const Segment& segment, std::int32_t rank) {
  const RankSlot& slot = segment.slot(rank);
  return {.rank = rank,
          .exit_status = slot.exit_status,
          .signal = 0,
          .code = slot.error == 0 ? Errc::internal : static_cast<Errc>(slot.error - 1),
          .message = std::string(slot.message, static_cast<std::size_t>(slot.message_bytes))};
}

std::vector<RankOutcome> run_threads(const LocalRun& launch) {
  std::vector<std::thread> threads;
  std::string failure;
  for (std::int32_t rank = 0; rank < launch.options.ranks; ++rank) {
    try {
      threads.emplace_back([&launch, rank] { run_rank(launch, rank); });
    } catch (const std::system_error& error) {
      failure = fmt::format("thread of rank {} could not be started: {}", rank, error.what());
      // The ranks that run wait for this one; tell them.
      for (std::int32_t rest = rank; rest < launch.options.ranks; ++rest) {
        shm::end_state(launch.segment.slot(rest), RankState::lost);
      }
      break;
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (!failure.empty()) throw Error(Errc::unavailable, failure);
  std::vector<RankOutcome> outcomes;
  for (std::int32_t rank = 0; rank < launch.options.ranks; ++rank) {
    outcomes.push_back(reported_outcome(launch.segment, rank));
  }
  return outcomes;
}

/// The forked ranks as their parent sees them.
class Children {
 public:
  explicit Children(const LocalRun& launch) : launch_(launch), outcomes_(count()) {}
  /// Kills what still runs: on an error here no rank is left behind.
  ~Children() {
    for (const Child& child : children_) {
      if (child.running) kill(child.pid, SIGKILL);
    }
    for (Child& child : children_) {
      if (child.running) waitpid(child.pid, nullptr, 0);
      if (child.process >= 0) close(child.process);
    }
  }
  Children(const Children&) = delete;
  Children& operator=(const Children&) = delete;

  void start();
  std::vector<RankOutcome> wait();

 private:
  struct Child {
    pid_t pid = 0;
    int process = -1;  ///< pidfd, or -1 where the system has none
    bool running = true;
    bool stopped_and_killed = false;
  };

  [[nodiscard]] std::size_t count() const { return static_cast<std::size_t>(launch_.options.ranks); }
  [[noreturn]] void run_child(std::int32_t rank, pid_t parent) const;
  [[nodiscard]] bool reap(std::int32_t rank);
  void end_stopped(bool broken);

  const LocalRun& launch_;
  std::vector<Child> children_;
  std::vector<RankOutcome> outcomes_;
};

void Children::run_child(std::int32_t rank, pid_t parent) const {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // It died before the line above.
  run_rank(launch_, rank);
  std::cout.flush();
  std::fflush(nullptr);
  // No exit handlers: they belong to the parent, whose memory this is a copy of.
  _exit(launch_.segment.slot(rank).exit_status & 0xff);
}

void Children::start() {
  std::cout.flush();
  std::fflush(nullptr);
  const pid_t parent = getpid();
  children_.reserve(count());
  for (std::int32_t rank = 0; rank < launch_.options.ranks; ++rank) {
    const pid_t pid = fork();
    if (pid == 0) run_child(rank, parent);
    if (pid < 0) {
      throw Error(Errc::unavailable, fmt::format("fork of rank {} of {}: {}", rank, launch_.options.ranks,
                                                 std::strerror(errno)));
    }
#ifdef SYS_pidfd_open
    const int process = static_cast<int>(syscall(SYS_pidfd_open, pid, 0U));
#else
    const int process = -1;
#endif
    children_.push_back({.pid = pid, .process = process});
    std::atomic_ref(launch_.segment.slot(rank).pid).store(pid, std::memory_order_release);
  }
}

/// Result: whether the rank has ended.
bool Children::reap(std::int32_t rank) {
  Child& child = children_[static_cast<std::size_t>(rank)];
  siginfo_t info{};
  const bool known = waitid(P_PID, static_cast<id_t>(child.pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0;
  if (known && info.si_pid == 0) return false;
  // Before the number of the process is free for another: see Waiter::watch_processes().
  RankSlot& slot = launch_.segment.slot(rank);
  shm::end_state(slot, RankState::lost);
  int status = 0;
  const bool have_status = waitpid(child.pid, &status, 0) == child.pid;
  child.running = false;
  RankOutcome& outcome = outcomes_[static_cast<std::size_t>(rank)];
  outcome = reported_outcome(launch_.segment, rank);
  if (have_status && WIFSIGNALED(status)) {
    outcome.signal = WTERMSIG(status);
    outcome.exit_status = 128 + outcome.signal;
    outcome.code = Errc::internal;
    outcome.message =
        fmt::format("{}killed by signal {} ({})", child.stopped_and_killed ? "stopped, then " : "",
                    outcome.signal, strsignal(outcome.signal));
  } else if (shm::load_state(slot) == RankState::lost) {
    outcome.exit_status = have_status ? WEXITSTATUS(status) : 1;
    outcome.message = have_status ? fmt::format("left its function by exit({})", outcome.exit_status)
                                  : "ended, but its status is not known: SIGCHLD is ignored in this process";
  }
  return true;
}

/// A stopped rank that the others have excluded, or of a broken world, has nobody left to answer, and would
/// keep this process waiting for ever.
void Children::end_stopped(bool broken) {
  const auto stopped = [](const Child& child) {
    siginfo_t info{};
    return waitid(P_PID, static_cast<id_t>(child.pid), &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
  };
  for (std::size_t rank = 0; rank < children_.size(); ++rank) {
    if (!children_[rank].running) continue;
    RankSlot& slot = launch_.segment.slot(static_cast<std::int32_t>(rank));
    if (!stopped(children_[rank]) || (!broken && shm::load_excluded_by(slot) == 0)) return;
  }
  for (Child& child : children_) {
    if (!child.running) continue;
    child.stopped_and_killed = true;
    kill(child.pid, SIGKILL);
  }
}

std::vector<RankOutcome> Children::wait() {
  std::vector<pollfd> processes;
  bool all_have_process = true;
  for (const Child& child : children_) {
    processes.push_back({.fd = child.process, .events = POLLIN, .revents = 0});
    all_have_process = all_have_process && child.process >= 0;
  }
  bool broken = false;
  std::size_t running = children_.size();
  while (running > 0) {
    // Nothing tells when a rank is stopped; that matters once others have ended.
    const bool some_ended = running < children_.size();
    poll(processes.data(), processes.size(), !all_have_process ? 5 : some_ended ? 100 : -1);
    for (std::int32_t rank = 0; rank < launch_.options.ranks; ++rank) {
      const auto index = static_cast<std::size_t>(rank);
      if (!children_[index].running || !reap(rank)) continue;
      --running;
      processes[index].fd = -1;
      broken = broken || outcomes_[index].exit_status != 0;
    }
    if (running > 0 && running < children_.size()) end_stopped(broken);
  }
  return outcomes_;
}

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
  std::string known;
  for (const TransportInfo& info : transport_registry()) {
    if (info.name == options.transport) {
      if (info.available) return;
      throw Error(Errc::unavailable, info.reason);
    }
    known += (known.empty() ? "" : ", ") + info.name;
  }
  throw Error(Errc::invalid_argument,
              fmt::format("transport '{}' is not known; allowed are: {}", options.transport, known));
}

}  // namespace

std::vector<RankOutcome> run_ranks(const LaunchOptions& options, const std::function<int(Transport&)>& body) {
  check(options);
  Segment segment(options.ranks);
  const LocalRun launch{.options = options,
                        .body = body,
                        .segment = segment,
                        .start = Clock::now() + options.start_deadline,
                        .cpus = allowed_cpus()};
  if (options.mode == RankMode::threads) return run_threads(launch);
  Children children(launch);
  children.start();
  return children.wait();
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

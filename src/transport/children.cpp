// Ranks as forked processes of this one.
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>

#include <shunt/core/error.h>

#include "local_run.h"

namespace shunt {

using shm::RankSlot;
using shm::RankState;

namespace {

/// Between looks for ranks that were stopped, while none has ended.
constexpr int kLookMilliseconds = 1000;
/// Looks in a row, while this process itself runs, after which ranks that are all stopped are given up where
/// others of their world are in other processes' care: those lost them long ago, and nobody can tell them so.
constexpr int kLooksBeforeGivingUp = 120;

[[nodiscard]] bool is_stopped(pid_t pid) {
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(pid), &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
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

  [[nodiscard]] std::size_t count() const { return static_cast<std::size_t>(launch_.count()); }
  [[noreturn]] void run_child(std::int32_t rank, pid_t parent) const;
  [[nodiscard]] bool reap(std::int32_t rank);
  void end_stopped(bool broken);
  [[nodiscard]] bool all_stopped() const;

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
  for (std::int32_t rank = 0; rank < launch_.count(); ++rank) {
    const pid_t pid = fork();
    if (pid == 0) run_child(rank, parent);
    if (pid < 0) {
      throw Error(Errc::unavailable, fmt::format("fork of rank {}, one of {}: {}", launch_.first_rank + rank,
                                                 launch_.count(), std::strerror(errno)));
    }
#ifdef SYS_pidfd_open
    const int process = static_cast<int>(syscall(SYS_pidfd_open, pid, 0U));
#else
    const int process = -1;
#endif
    children_.push_back({.pid = pid, .process = process});
    std::atomic_ref(launch_.segment.slot(rank).pid).store(pid, std::memory_order_release);
    if (RankSlot* node_slot = launch_.node_slot(rank))
      std::atomic_ref(node_slot->pid).store(pid, std::memory_order_release);
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
  RankSlot* const node_slot = launch_.node_slot(rank);
  shm::end_state(slot, RankState::lost);
  if (node_slot != nullptr) shm::end_state(*node_slot, RankState::lost);
  int status = 0;
  const bool have_status = waitpid(child.pid, &status, 0) == child.pid;
  child.running = false;
  RankOutcome& outcome = outcomes_[static_cast<std::size_t>(rank)];
  outcome = reported_outcome(launch_, rank);
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

bool Children::all_stopped() const {
  return std::all_of(children_.begin(), children_.end(),
                     [](const Child& child) { return !child.running || is_stopped(child.pid); });
}

/// A stopped rank that the others have excluded, or of a broken world, has nobody left to answer, and would
/// keep this process waiting for ever.
void Children::end_stopped(bool broken) {
  for (std::size_t rank = 0; rank < children_.size(); ++rank) {
    if (!children_[rank].running) continue;
    RankSlot& slot = launch_.segment.slot(static_cast<std::int32_t>(rank));
    RankSlot* const node_slot = launch_.node_slot(static_cast<std::int32_t>(rank));
    const bool excluded =
        shm::load_excluded_by(slot) != 0 || (node_slot != nullptr && shm::load_excluded_by(*node_slot) != 0);
    if (!is_stopped(children_[rank].pid) || (!broken && !excluded)) return;
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
  int looks_stopped = 0;
  auto last_look = Clock::now();
  std::size_t running = children_.size();
  while (running > 0) {
    // Nothing tells when a rank is stopped; that matters once others have ended.
    const bool some_ended = running < children_.size();
    poll(processes.data(), processes.size(), !all_have_process ? 5 : some_ended ? 100 : kLookMilliseconds);
    for (std::int32_t rank = 0; rank < launch_.count(); ++rank) {
      const auto index = static_cast<std::size_t>(rank);
      if (!children_[index].running || !reap(rank)) continue;
      --running;
      processes[index].fd = -1;
      broken = broken || outcomes_[index].exit_status != 0;
    }
    if (running == 0) break;
    const auto now = Clock::now();
    if (launch_.part_of_world && now - last_look >= std::chrono::milliseconds(kLookMilliseconds)) {
      last_look = now;
      looks_stopped = all_stopped() ? looks_stopped + 1 : 0;
    }
    end_stopped(broken || looks_stopped >= kLooksBeforeGivingUp);
  }
  return outcomes_;
}

}  // namespace

std::vector<RankOutcome> run_children(const LocalRun& launch) {
  Children children(launch);
  children.start();
  return children.wait();
}

}  // namespace shunt

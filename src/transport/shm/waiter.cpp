#include "shm/waiter.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <thread>

#include <shunt/core/error.h>

namespace shunt::shm {
namespace {

using namespace std::chrono_literals;

/// One pause takes 20 to 40 ns: a few microseconds, about the time of a peer's step at the smallest sizes.
constexpr std::int32_t kSpins = 200;
/// With more ranks than CPUs the peer may be waiting for this CPU, and each pause keeps it from running.
constexpr std::int32_t kSpinsOversubscribed = 20;
constexpr std::int32_t kFewestSpins = 4;
/// A yield with nobody else to run takes 0.2 to 0.5 us; two switches of process alone take longer than this.
constexpr auto kYieldAlone = 1us;
/// Sleeping costs tens of microseconds to wake up, so it starts only where that is small beside the wait.
constexpr auto kYieldTime = 10ms;
constexpr std::int32_t kYieldsPerClock = 8;
constexpr auto kShortestSleep = 50us;
constexpr auto kLongestSleep = 1000us;

void pause_cpu() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield" ::: "memory");
#endif
}

[[nodiscard]] int open_process(std::int32_t pid) {
#ifdef SYS_pidfd_open
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0U));
#else
  static_cast<void>(pid);
  errno = ENOSYS;
  return -1;
#endif
}

[[nodiscard]] std::string place(const WaitSite& site) {
  return site.peer < 0 ? fmt::format("waiting in {}", site.phase)
                       : fmt::format("waiting for rank {} in {}", site.peer, site.phase);
}

}  // namespace

Waiter::Waiter(const Segment& segment, std::int32_t rank, bool oversubscribed)
    : segment_(segment),
      rank_(rank),
      most_spins_(oversubscribed ? kSpinsOversubscribed : kSpins),
      spins_(most_spins_),
      processes_(static_cast<std::size_t>(segment.ranks()), pollfd{.fd = -1, .events = POLLIN, .revents = 0}),
      forgotten_(static_cast<std::size_t>(segment.ranks())) {}

Waiter::~Waiter() {
  for (const pollfd& process : processes_) {
    if (process.fd >= 0) close(process.fd);
  }
}

void Waiter::watch_processes(Deadline deadline) {
  const auto start = Clock::now();
  for (std::int32_t peer = 0; peer < segment_.ranks(); ++peer) {
    if (peer == rank_) continue;
    RankSlot& slot = segment_.slot(peer);
    std::int32_t pid = 0;
    while ((pid = std::atomic_ref(slot.pid).load(std::memory_order_acquire)) == 0) {
      if (Clock::now() >= deadline) throw_timeout(Clock::now() - start, {.phase = "start", .peer = peer});
      sched_yield();
    }
    const int process = open_process(pid);
    if (process < 0) {
      // Other failures (no such call, no descriptors left): the parent's word in the slot and the deadline
      // remain.
      if (errno == ESRCH) end_state(slot, RankState::lost);
      continue;
    }
    // The parent marks the slot before it frees the number: while the mark is missing, the number is the
    // peer's.
    if (load_state(slot) == RankState::lost) {
      close(process);
    } else {
      processes_[static_cast<std::size_t>(peer)].fd = process;
    }
  }
}

void Waiter::forget(std::int32_t peer) noexcept {
  forgotten_[static_cast<std::size_t>(peer)] = 1;
  pollfd& process = processes_[static_cast<std::size_t>(peer)];
  if (process.fd >= 0) close(process.fd);
  process.fd = -1;
}

std::uint64_t Waiter::wait_longer(const std::byte* word, std::uint64_t value, Deadline deadline,
                                  const WaitSite& site) const {
  std::uint64_t seen = 0;
  const auto arrived = [&]() noexcept {
    seen = load(word);
    return reached(seen, value);
  };
  for (std::int32_t spin = 0; spin < spins_; ++spin) {
    pause_cpu();
    if (arrived()) {
      spins_ = std::min(2 * spins_, most_spins_);
      return seen;
    }
  }
  check_excluded(site);
  const auto start = Clock::now();
  sched_yield();
  auto now = Clock::now();
  if (arrived()) {
    // A yield that took long let another run, and the signal came of it: spinning only kept it waiting.
    spins_ =
        now - start > kYieldAlone ? std::max(spins_ / 2, kFewestSpins) : std::min(2 * spins_, most_spins_);
    return seen;
  }
  while (now - start < kYieldTime) {
    if (now >= deadline) throw_timeout(now - start, site);
    for (std::int32_t yield = 0; yield < kYieldsPerClock; ++yield) {
      sched_yield();
      if (arrived()) return seen;
    }
    now = Clock::now();
  }
  Clock::duration sleep = kShortestSleep;
  while (true) {
    const Loss loss = find_loss(site.peer);
    // What the peer sent before it ended still counts.
    if (arrived()) return seen;
    check_excluded(site);
    if (loss.rank >= 0) throw_lost(loss, site);
    now = Clock::now();
    if (now >= deadline) throw_timeout(now - start, site);
    std::this_thread::sleep_for(std::min<Clock::duration>(sleep, deadline - now));
    sleep = std::min<Clock::duration>(2 * sleep, kLongestSleep);
  }
}

Waiter::Loss Waiter::find_loss(std::int32_t awaited) const {
  // A process that ended comes before ranks that failed: those may have failed because of it.
  Loss failed;
  Loss finished;
  const int ready = poll(processes_.data(), processes_.size(), 0);
  for (std::int32_t peer = 0; peer < segment_.ranks(); ++peer) {
    if (peer == rank_ || forgotten_[static_cast<std::size_t>(peer)] != 0) continue;
    const pollfd& process = processes_[static_cast<std::size_t>(peer)];
    const bool ended = ready > 0 && process.fd >= 0 && process.revents != 0;
    switch (load_state(segment_.slot(peer))) {
      case RankState::running:
        if (ended) return {peer, "its process ended"};
        break;
      case RankState::lost:
        return {peer, "its process ended"};
      case RankState::failed:
        if (failed.rank < 0 || peer == awaited) failed = {peer, "it ended with an error"};
        break;
      case RankState::finished:
        if (peer == awaited) finished = {peer, "it has finished"};
        break;
    }
  }
  return failed.rank >= 0 ? failed : finished;
}

void Waiter::throw_timeout(Clock::duration waited, const WaitSite& site) const {
  // A rank that was stopped finds its deadline over, but that is not why it is alone.
  check_excluded(site);
  throw Error(Errc::timeout,
              fmt::format("rank {}: timed out after {} ms {}", rank_,
                          std::chrono::round<std::chrono::milliseconds>(waited).count(), place(site)));
}

void Waiter::throw_lost(const Loss& loss, const WaitSite& site) const {
  throw Error(Errc::peer_lost,
              fmt::format("rank {}: lost rank {} ({}) while {}", rank_, loss.rank, loss.how, place(site)));
}

void Waiter::throw_excluded(const WaitSite& site) const {
  throw Error(
      Errc::peer_lost,
      fmt::format("rank {}: excluded: it did not answer, and the others went on without it (so rank {} "
                  "says), while {}",
                  rank_, load_excluded_by(segment_.slot(rank_)) - 1, place(site)));
}

}  // namespace shunt::shm

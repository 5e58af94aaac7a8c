#include "shm/waiter.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string>
#include <thread>
#include <utility>

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
/// Between looks at a network, which needs this rank to take what arrives.
constexpr auto kLongestSleepOfProgress = 200us;
constexpr std::int32_t kSpinsPerProgress = 20;
/// For a rank that waits to show that it does: enough to be scheduled a few times on a crowded machine.
constexpr auto kTimeToAnswer = 250ms;

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

Waiter::Waiter(const Segment& segment, std::vector<std::int32_t> members, std::int32_t index,
               std::int32_t world_size, bool oversubscribed)
    : segment_(segment),
      members_(std::move(members)),
      slot_of_(static_cast<std::size_t>(world_size), -1),
      index_(index),
      rank_(members_[static_cast<std::size_t>(index)]),
      most_spins_(oversubscribed ? kSpinsOversubscribed : kSpins),
      spins_(most_spins_),
      processes_(members_.size(), pollfd{.fd = -1, .events = POLLIN, .revents = 0}),
      forgotten_(slot_of_.size()),
      settled_(slot_of_.size()) {
  for (std::size_t slot = 0; slot < members_.size(); ++slot)
    slot_of_[static_cast<std::size_t>(members_[slot])] = static_cast<std::int32_t>(slot);
}

Waiter::~Waiter() {
  for (const pollfd& process : processes_) {
    if (process.fd >= 0) close(process.fd);
  }
}

void Waiter::watch_processes(Deadline deadline) {
  const auto start = Clock::now();
  for (std::int32_t index = 0; index < segment_.ranks(); ++index) {
    if (index == index_) continue;
    RankSlot& slot = segment_.slot(index);
    std::int32_t pid = 0;
    while ((pid = std::atomic_ref(slot.pid).load(std::memory_order_acquire)) == 0) {
      if (Clock::now() >= deadline) {
        throw_timeout(Clock::now() - start,
                      {.phase = "start", .peer = members_[static_cast<std::size_t>(index)]});
      }
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
      processes_[static_cast<std::size_t>(index)].fd = process;
    }
  }
}

void Waiter::forget(std::int32_t peer) noexcept {
  forgotten_[static_cast<std::size_t>(peer)] = 1;
  const std::int32_t slot = slot_of_[static_cast<std::size_t>(peer)];
  if (slot < 0) return;
  pollfd& process = processes_[static_cast<std::size_t>(slot)];
  if (process.fd >= 0) close(process.fd);
  process.fd = -1;
}

void Waiter::settle() noexcept {
  for (std::size_t rank = 0; rank < settled_.size(); ++rank)
    settled_[rank] = notice_word(static_cast<std::int32_t>(rank));
}

std::uint64_t Waiter::wait_longer(const std::byte* word, std::uint64_t value, Deadline deadline,
                                  const WaitSite& site) const {
  std::uint64_t seen = 0;
  const auto arrived = [&]() noexcept {
    seen = load(word);
    return reached(seen, value);
  };
  // A signal from another node comes by progress alone; one from this node may need that this rank moves on
  // what others wait for.
  const std::int32_t spins_per_progress = helper_ == nullptr ? std::numeric_limits<std::int32_t>::max()
                                          : helper_->is_remote(site.peer) ? 1
                                                                          : kSpinsPerProgress;
  std::int32_t to_progress = helper_ == nullptr ? spins_per_progress : 1;
  for (std::int32_t spin = 0; spin < spins_; ++spin) {
    if (--to_progress == 0) {
      helper_->progress();
      to_progress = spins_per_progress;
    }
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
    if (now >= deadline) return give_up(word, value, start, site);
    for (std::int32_t yield = 0; yield < kYieldsPerClock; ++yield) {
      if (helper_ != nullptr) helper_->progress();
      sched_yield();
      if (arrived()) return seen;
    }
    now = Clock::now();
  }
  const Clock::duration longest = helper_ == nullptr ? kLongestSleep : kLongestSleepOfProgress;
  Clock::duration sleep = kShortestSleep;
  while (true) {
    tell_waiting(site);
    if (helper_ != nullptr) helper_->progress();
    const Loss loss = find_loss(site.peer);
    // What the peer sent before it ended still counts.
    if (arrived()) return seen;
    check_excluded(site);
    check_breaker(site);
    if (loss.rank >= 0) throw_lost(loss, site);
    now = Clock::now();
    if (now >= deadline) return give_up(word, value, start, site);
    std::this_thread::sleep_for(std::min<Clock::duration>(sleep, deadline - now));
    sleep = std::min<Clock::duration>(2 * sleep, longest);
  }
}

/// After the deadline: finds out who is to blame, tells the others and throws, unless the signal comes
/// meanwhile.
std::uint64_t Waiter::give_up(const std::byte* word, std::uint64_t value, Clock::time_point start,
                              const WaitSite& site) const {
  const Clock::duration waited = Clock::now() - start;
  std::vector<std::uint64_t> before(slot_of_.size());
  for (std::size_t rank = 0; rank < before.size(); ++rank)
    before[rank] = notice_word(static_cast<std::int32_t>(rank));
  if (helper_ != nullptr) helper_->inquire(site.peer);
  const Deadline end = Clock::now() + kTimeToAnswer;
  std::int32_t blamed = site.peer;
  while (blamed >= 0 && Clock::now() < end) {
    tell_waiting(site);
    if (helper_ != nullptr) helper_->progress();
    const Loss loss = find_loss(site.peer);
    if (const std::uint64_t seen = load(word); reached(seen, value)) return seen;
    check_excluded(site);
    check_breaker(site);
    if (loss.rank >= 0) throw_lost(loss, site);
    blamed = follow(before, site.peer);
    std::this_thread::sleep_for(kShortestSleep);
  }
  const std::uint8_t phase = phase_number(site.phase);
  if (blamed < 0) {
    publish({.kind = NoticeKind::gave_up, .rank = site.peer, .phase = phase});
    throw_timeout(waited, site);
  }
  publish({.kind = NoticeKind::accuses, .rank = blamed, .phase = phase});
  if (blamed == site.peer) throw_timeout(waited, site);
  throw_lost({blamed, fmt::format("it does not answer and holds up rank {}", site.peer)}, site);
}

/// The rank at the end of the chain of ranks that wait for each other, from the one waited for; -1 where there
/// is none, since the chain is a circle or leads to this rank.
std::int32_t Waiter::follow(const std::vector<std::uint64_t>& before, std::int32_t awaited) const {
  std::int32_t at = awaited;
  for (std::size_t step = 0; step < before.size() && at >= 0 && at != rank_; ++step) {
    const std::uint64_t word = notice_word(at);
    const Notice notice = unpack_notice(word);
    const auto index = static_cast<std::size_t>(at);
    const bool waits = (notice.kind == NoticeKind::gave_up && word != settled_[index]) ||
                       (notice.kind == NoticeKind::waiting && word != before[index]);
    if (!waits) return at;
    at = notice.rank;
  }
  return -1;
}

void Waiter::tell_waiting(const WaitSite& site) const noexcept {
  const std::uint64_t word = pack_notice(
      ++notices_, {.kind = NoticeKind::waiting, .rank = site.peer, .phase = phase_number(site.phase)});
  std::atomic_ref(segment_.slot(index_).notice).store(word, std::memory_order_release);
  if (helper_ != nullptr) helper_->answer(word);
}

void Waiter::publish(const Notice& notice) const noexcept {
  const std::uint64_t word = pack_notice(++notices_, notice);
  std::atomic_ref(segment_.slot(index_).notice).store(word, std::memory_order_release);
  if (helper_ != nullptr) helper_->publish(word, notice.rank);
}

std::uint64_t Waiter::notice_word(std::int32_t rank) const noexcept {
  const std::int32_t slot = slot_of_[static_cast<std::size_t>(rank)];
  if (slot >= 0) return std::atomic_ref(segment_.slot(slot).notice).load(std::memory_order_acquire);
  return helper_ == nullptr ? 0 : helper_->notice_of(rank);
}

std::int32_t Waiter::find_ended() const {
  const int ready = poll(processes_.data(), processes_.size(), 0);
  for (std::int32_t slot = 0; slot < segment_.ranks(); ++slot) {
    const std::int32_t peer = members_[static_cast<std::size_t>(slot)];
    if (slot == index_ || forgotten(peer)) continue;
    const pollfd& process = processes_[static_cast<std::size_t>(slot)];
    const bool ended = ready > 0 && process.fd >= 0 && process.revents != 0;
    const RankState state = load_state(segment_.slot(slot));
    if (state == RankState::lost || (state == RankState::running && ended)) return peer;
  }
  return -1;
}

Loss Waiter::find_loss(std::int32_t awaited) const {
  // A process that ended comes first, then a rank that another accuses, then ranks that failed: those may have
  // failed because of it.
  Loss failed;
  Loss finished;
  const int ready = poll(processes_.data(), processes_.size(), 0);
  for (std::int32_t slot = 0; slot < segment_.ranks(); ++slot) {
    const std::int32_t peer = members_[static_cast<std::size_t>(slot)];
    if (slot == index_ || forgotten(peer)) continue;
    const pollfd& process = processes_[static_cast<std::size_t>(slot)];
    const bool ended = ready > 0 && process.fd >= 0 && process.revents != 0;
    switch (load_state(segment_.slot(slot))) {
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
  Loss elsewhere;
  if (helper_ != nullptr) elsewhere = helper_->find_loss();
  for (std::int32_t peer = 0; peer < static_cast<std::int32_t>(slot_of_.size()); ++peer) {
    if (peer == rank_ || forgotten(peer)) continue;
    const std::uint64_t word = notice_word(peer);
    const Notice notice = unpack_notice(word);
    if (notice.kind == NoticeKind::accuses && word != settled_[static_cast<std::size_t>(peer)] &&
        notice.rank >= 0 && notice.rank != rank_ && !forgotten(notice.rank)) {
      return {notice.rank, fmt::format("rank {} gave up on it in {}", peer, phase_name(notice.phase))};
    }
    // Also of ranks of this node: their slots say so later, when they have left the network.
    if (notice.kind == NoticeKind::failed && (failed.rank < 0 || peer == awaited))
      failed = {peer, "it ended with an error"};
    if (slot_of_[static_cast<std::size_t>(peer)] >= 0) continue;
    if (notice.kind == NoticeKind::finished && peer == awaited) finished = {peer, "it has finished"};
  }
  if (elsewhere.rank >= 0) return elsewhere;
  return failed.rank >= 0 ? failed : finished;
}

void Waiter::throw_timeout(Clock::duration waited, const WaitSite& site) const {
  // A rank that was stopped finds its deadline over, but that is not why it is alone.
  check_excluded(site);
  throw Error(Errc::timeout,
              fmt::format("rank {}: timed out after {} ms {}", rank_,
                          std::chrono::round<std::chrono::milliseconds>(waited).count(), place(site)),
              site.peer);
}

void Waiter::throw_lost(const Loss& loss, const WaitSite& site) const {
  // Others may not have seen it yet; they would find this rank ended with an error and blame it.
  if (helper_ != nullptr && loss.rank != rank_ && loss.rank >= 0)
    publish({.kind = NoticeKind::accuses, .rank = loss.rank, .phase = phase_number(site.phase)});
  throw Error(Errc::peer_lost,
              fmt::format("rank {}: lost rank {} ({}) while {}", rank_, loss.rank, loss.how, place(site)),
              loss.rank);
}

/// Before a loss is thrown: who asks for an agreement may know more, and nobody is to be accused because of it.
void Waiter::check_breaker(const WaitSite& site) const {
  if (breaker_ == nullptr || !breaker_->breaks_waits()) return;
  throw Error(
      Errc::peer_lost,
      fmt::format("rank {}: another rank has lost one and asks who is left, while {}", rank_, place(site)));
}

void Waiter::throw_excluded(const WaitSite& site) const {
  throw Error(
      Errc::peer_lost,
      fmt::format("rank {}: excluded: it did not answer, and the others went on without it (so rank {} "
                  "says), while {}",
                  rank_, load_excluded_by(segment_.slot(index_)) - 1, place(site)));
}

}  // namespace shunt::shm

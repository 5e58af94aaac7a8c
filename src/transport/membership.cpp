// Agreement on the surviving ranks: single-decree Paxos, one instance (epoch) for each agreement. The acceptors of an
// epoch are the members that the epoch before decided on, and a quorum is more than half of them, or half with their
// lowest rank; two quorums always share a rank. A rank goes on only with the choice of its epoch, and only where it is
// one of its members, so of two sides that cannot hear each other at most one goes on. Nothing of this depends on
// clocks: they only say when to give up waiting for a rank. tests/model/membership.pml states the ballots for a model
// checker.
//
// Every rank puts its whole state (Register) to all others whenever it changes, and now and then as a sign of life.
// The lowest rank that gives signs of life proposes: it asks for promises, waits until all that joined have promised
// and heard each other, chooses those as members, and asks to accept. Whoever sees that a quorum has accepted one
// ballot decides, and puts the decision to all before it returns.
#include <shunt/transport/membership.h>

#include <sched.h>

#include <algorithm>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/random.h>

#include "membership_mailbox.h"

namespace shunt {
namespace {

/// Looked at by one call of requested(): each look may cost a call into the network's driver.
constexpr std::int32_t kLooks = 8;
/// Between tries to tell a decision.
constexpr std::chrono::microseconds kPause{100};
/// All times of an agreement in parts of its window.
constexpr int kPatience = 3;         ///< Windows until a rank gives up
constexpr int kSuspectsPart = 4;     ///< A suspected rank must join in this part of the window
constexpr int kSilencePart = 4;      ///< So long without a sign of life, and the next rank proposes
constexpr int kSettlePart = 4;       ///< So long a proposer waits for promises of ranks that have joined
constexpr int kSignOfLifePart = 24;  ///< Time between signs of life
constexpr int kRetryPart = 16;       ///< Least time between two ballots of one rank

[[nodiscard]] std::string list(const RankSet& set, std::int32_t size) {
  std::string text;
  for (std::int32_t rank = 0; rank < size; ++rank) {
    if (set.has(rank)) text += (text.empty() ? "" : ", ") + std::to_string(rank);
  }
  return text;
}

}  // namespace

struct Membership::Impl final : WaitBreaker {
  Impl(Transport& to_use, Deadline deadline)
      : transport(to_use),
        rank(transport.world().rank),
        size(transport.world().size),
        mailbox(transport.host(), deadline),
        members(size),
        random(0x6d656d62, static_cast<std::uint64_t>(rank)),
        peers(static_cast<std::size_t>(size)) {
    for (std::int32_t one = 0; one < size; ++one) {
      members.add(one);
      Register& state = at(one).state;
      state.accepted_choice.members = RankSet(size);
      state.proposed_choice.members = RankSet(size);
      state.suspects = RankSet(size);
      state.heard = RankSet(size);
    }
  }

  struct Peer {
    Register state;  ///< As last seen; for this rank its own
    Clock::time_point heard_at;
    bool put_pending = false;  ///< It has not got this rank's newest state
  };
  [[nodiscard]] Peer& at(std::int32_t one) { return peers[static_cast<std::size_t>(one)]; }
  [[nodiscard]] Register& own() { return at(rank).state; }

  template <class Call>
  void for_each_member(const Call& call) {
    for (std::int32_t one = 0; one < size; ++one) {
      if (members.has(one)) call(one);
    }
  }
  template <class Call>
  void for_each_peer(const Call& call) {
    for_each_member([&](std::int32_t one) {
      if (one != rank) call(one);
    });
  }

  [[nodiscard]] bool requested();
  [[nodiscard]] bool breaks_waits() override { return requested(); }

  // Of the running agreement.
  [[nodiscard]] bool joined(std::int32_t one) { return at(one).state.epoch >= epoch; }
  /// Whether its promises and acceptances are of this agreement; a rank beyond it has decided.
  [[nodiscard]] bool takes_part(std::int32_t one) { return at(one).state.epoch == epoch; }
  [[nodiscard]] bool alive(std::int32_t one) {
    return one == rank || (joined(one) && now - at(one).heard_at < window / kSilencePart);
  }
  [[nodiscard]] bool is_quorum(const RankSet& set);
  [[nodiscard]] bool proposes();
  [[nodiscard]] bool all_had_their_time();
  [[nodiscard]] bool preempted();

  void join(std::span<const std::int32_t> suspects, std::int64_t value, std::chrono::milliseconds for_long);
  void receive(bool at_first);
  void vote();
  void propose();
  void begin_ballot();
  void end_promises();
  [[nodiscard]] RankSet connected(RankSet set);
  [[nodiscard]] bool hear_each_other(std::int32_t one, std::int32_t other);
  [[nodiscard]] const Choice* find_decision();
  void put_states();
  Agreement conclude(const Choice& decision);
  [[noreturn]] void give_up();
  [[noreturn]] void end_left_out(std::int32_t teller, const std::string& without);

  Transport& transport;
  std::int32_t rank;
  std::int32_t size;
  MembershipMailbox mailbox;
  RankSet members;
  Random random;
  std::vector<Peer> peers;
  std::uint64_t completed = 0;  ///< Epochs
  std::int32_t next_look = 0;
  bool dead = false;

  std::uint64_t epoch = 0;
  Clock::duration window{};
  Clock::time_point joined_at;  ///< By this rank
  Clock::time_point begun_at;   ///< As far as this rank knows: when the first of the living joined
  Clock::time_point now;
  Clock::time_point put_at;
  Clock::time_point retry_at;
  Clock::time_point ballot_at;
  bool balloting = false;  ///< own().proposed is under way
  bool changed = false;    ///< Something new was heard or said
  Choice decided;
};

bool Membership::Impl::is_quorum(const RankSet& set) {
  std::int32_t lowest = 0;
  while (!members.has(lowest)) ++lowest;
  const std::int32_t twice = 2 * set.count();
  return twice > members.count() || (twice == members.count() && set.has(lowest));
}

bool Membership::Impl::proposes() {
  for (std::int32_t lower = 0; lower < rank; ++lower) {
    if (members.has(lower) && alive(lower)) return false;
  }
  return true;
}

/// Whether no further rank is to be waited for.
bool Membership::Impl::all_had_their_time() {
  RankSet suspects(size);
  for_each_member([&](std::int32_t one) {
    if (takes_part(one)) suspects.add(at(one).state.suspects);
  });
  bool all = true;
  bool all_unsuspected = true;
  for_each_member([&](std::int32_t one) {
    if (joined(one)) return;
    all = false;
    all_unsuspected = all_unsuspected && suspects.has(one);
  });
  const auto waited = now - begun_at;
  return all || waited >= window || (all_unsuspected && waited >= window / kSuspectsPart);
}

bool Membership::Impl::preempted() {
  bool found = false;
  for_each_peer([&](std::int32_t one) {
    found = found || (takes_part(one) && at(one).state.promised > own().proposed);
  });
  return found || own().promised > own().proposed;
}

void Membership::Impl::join(std::span<const std::int32_t> suspects, std::int64_t value,
                            std::chrono::milliseconds for_long) {
  now = Clock::now();
  epoch = completed + 1;
  window = for_long;
  joined_at = begun_at = put_at = retry_at = now;
  balloting = false;
  changed = true;
  Register& mine = own();
  mine.epoch = epoch;
  mine.value = value;
  mine.promised = mine.accepted = mine.proposed = 0;
  mine.proposing = false;
  mine.suspects = RankSet(size);
  mine.heard = RankSet(size);
  for (const std::int32_t one : suspects) {
    if (one >= 0 && one < size && one != rank) mine.suspects.add(one);
  }
  mine.heard.add(rank);
  receive(true);
  for_each_peer([&](std::int32_t one) {
    // Taken in an earlier agreement, by a peer that was ahead.
    if (joined(one)) at(one).heard_at = now;
    if (joined(one)) mine.heard.add(one);
  });
}

void Membership::Impl::receive(bool at_first) {
  for_each_peer([&](std::int32_t one) {
    Peer& peer = at(one);
    if (!mailbox.take(one, peer.state)) return;
    changed = true;
    peer.heard_at = now;
    if (!joined(one)) return;
    own().heard.add(one);
    // What lay here before this rank came may be by a rank that has gone since; its window is over, ours not.
    if (!at_first && takes_part(one))
      begun_at = std::min(
          begun_at, std::max(now - std::chrono::nanoseconds(peer.state.elapsed_ns), joined_at - window));
  });
}

/// As an acceptor.
void Membership::Impl::vote() {
  Register& mine = own();
  for_each_peer([&](std::int32_t one) {
    if (!takes_part(one)) return;
    const Register& state = at(one).state;
    if (state.proposed > mine.promised) {
      mine.promised = state.proposed;
      changed = true;
    }
    if (state.proposing && state.proposed == mine.promised && mine.accepted != state.proposed) {
      mine.accepted = state.proposed;
      mine.accepted_choice = state.proposed_choice;
      changed = true;
    }
  });
}

void Membership::Impl::propose() {
  if (balloting && preempted()) {
    balloting = false;
    const auto least = std::chrono::duration_cast<std::chrono::nanoseconds>(window / kRetryPart).count();
    retry_at =
        now + std::chrono::nanoseconds(
                  least + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(least) + 1)));
  }
  if (!balloting && now >= retry_at && proposes() && all_had_their_time()) begin_ballot();
  if (balloting && !own().proposing) end_promises();
}

void Membership::Impl::begin_ballot() {
  std::uint64_t highest = 0;
  for_each_member([&](std::int32_t one) {
    if (takes_part(one)) highest = std::max(highest, at(one).state.promised);
  });
  const auto ranks = static_cast<std::uint64_t>(size);
  Register& mine = own();
  mine.proposed = (highest / ranks + 1) * ranks + static_cast<std::uint64_t>(rank);
  mine.promised = mine.proposed;
  mine.proposing = false;
  balloting = true;
  ballot_at = now;
  changed = true;
}

/// Goes on to the second half of a ballot once enough have promised.
void Membership::Impl::end_promises() {
  Register& mine = own();
  RankSet promised(size);
  bool all = true;
  std::uint64_t accepted = 0;
  const Choice* choice = nullptr;
  for_each_member([&](std::int32_t one) {
    const Register& state = at(one).state;
    if (takes_part(one) && state.promised == mine.proposed) {
      promised.add(one);
      if (state.accepted > accepted) {
        accepted = state.accepted;
        choice = &state.accepted_choice;
      }
    } else {
      all = all && !joined(one);
    }
  });
  if (!is_quorum(promised)) return;
  const RankSet next = connected(promised);
  const bool settled = all && next == promised;
  if (!settled && now - ballot_at < window / kSettlePart) return;
  if (choice != nullptr) {
    // It may have been decided already, so nothing else may be.
    mine.proposed_choice = *choice;
  } else {
    if (!is_quorum(next)) return;
    mine.proposed_choice.members = next;
    mine.proposed_choice.highest = mine.value;
    bool first = true;
    for_each_member([&](std::int32_t one) {
      if (!next.has(one)) return;
      const std::int64_t value = at(one).state.value;
      mine.proposed_choice.highest = first ? value : std::max(mine.proposed_choice.highest, value);
      first = false;
    });
  }
  mine.proposing = true;
  mine.accepted = mine.proposed;
  mine.accepted_choice = mine.proposed_choice;
  changed = true;
}

bool Membership::Impl::hear_each_other(std::int32_t one, std::int32_t other) {
  return at(one).state.heard.has(other) && at(other).state.heard.has(one);
}

/// Leaves out ranks until all that are left hear each other: those first that hear the fewest, of these the
/// highest.
RankSet Membership::Impl::connected(RankSet set) {
  while (true) {
    const std::int32_t count = set.count();
    std::int32_t worst = -1;
    std::int32_t fewest = count;
    for (std::int32_t one = 0; one < size; ++one) {
      if (!set.has(one)) continue;
      std::int32_t hears = 0;
      for (std::int32_t other = 0; other < size; ++other) {
        if (set.has(other) && (one == other || hear_each_other(one, other))) ++hears;
      }
      if (hears < count && hears <= fewest) {
        fewest = hears;
        worst = one;
      }
    }
    if (worst < 0) return set;
    set.remove(worst);
  }
}

/// Result: null where there is none yet.
const Choice* Membership::Impl::find_decision() {
  for (std::int32_t one = 0; one < size; ++one) {
    if (one == rank || !members.has(one)) continue;
    const std::uint64_t told = mailbox.decision_of(one);
    if (told > epoch) end_left_out(one, fmt::format("agreement {} is over", told));
    if (told != epoch) continue;
    decided = mailbox.read_decision(one, epoch);
    if (!decided.members.has(rank))
      end_left_out(one, fmt::format("ranks {} are left", list(decided.members, size)));
    return &decided;
  }
  for (std::int32_t one = 0; one < size; ++one) {
    if (!members.has(one) || !takes_part(one) || at(one).state.accepted == 0) continue;
    RankSet accepted(size);
    for_each_member([&](std::int32_t other) {
      if (takes_part(other) && at(other).state.accepted == at(one).state.accepted) accepted.add(other);
    });
    if (!is_quorum(accepted)) continue;
    decided = at(one).state.accepted_choice;
    return &decided;
  }
  return nullptr;
}

void Membership::Impl::put_states() {
  const bool due = changed || now - put_at >= window / kSignOfLifePart;
  if (due) put_at = now;
  own().elapsed_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now - begun_at).count();
  for_each_peer([&](std::int32_t one) {
    Peer& peer = at(one);
    if (due || peer.put_pending) peer.put_pending = !mailbox.put(one, own());
  });
}

/// The other members learn of the decision before this rank goes on; afterwards it does not answer any more.
Agreement Membership::Impl::conclude(const Choice& decision) {
  RankSet untold = decision.members;
  const std::vector<std::uint64_t>& draft = mailbox.draft_decision(decision);
  for_each_peer([&](std::int32_t one) {
    if (mailbox.put_decision(one, epoch, draft)) untold.remove(one);
  });
  // Those left out may be gone, and find it out otherwise if they are not; members are there.
  untold.remove(rank);
  const Deadline end = Clock::now() + window / kSilencePart;
  while (untold.count() > 0 && Clock::now() < end) {
    std::this_thread::sleep_for(kPause);
    for_each_peer([&](std::int32_t one) {
      if (untold.has(one) && mailbox.put_decision(one, epoch, draft)) untold.remove(one);
    });
  }
  if (!decision.members.has(rank))
    end_left_out(rank, fmt::format("ranks {} are left", list(decision.members, size)));
  Agreement result{.lost = {}, .members = {}, .highest = decision.highest};
  for_each_member(
      [&](std::int32_t one) { (decision.members.has(one) ? result.members : result.lost).push_back(one); });
  // Also where nobody is lost: after a false alarm the transport goes on.
  transport.exclude(result.lost);
  members = decision.members;
  completed = epoch;
  try {
    transport.host().quiet();
    mailbox.forget_drafts();
  } catch (const Error&) {
    // One more rank is gone; the next wait for it says so.
  }
  return result;
}

void Membership::Impl::end_left_out(std::int32_t teller, const std::string& without) {
  dead = true;
  throw Error(
      Errc::peer_lost,
      fmt::format("rank {}: the others went on without it: it did not answer in time in agreement {} on "
                  "who is left, and {}{}",
                  rank, epoch, without, teller == rank ? "" : fmt::format(", as rank {} says", teller)));
}

void Membership::Impl::give_up() {
  dead = true;
  RankSet answered(size);
  std::int32_t lowest = -1;
  for_each_member([&](std::int32_t one) {
    if (lowest < 0) lowest = one;
    if (one == rank || joined(one)) answered.add(one);
  });
  const auto waited = std::chrono::round<std::chrono::milliseconds>(now - joined_at).count();
  throw Error(
      Errc::peer_lost,
      fmt::format(
          "rank {}: {} of {} ranks ({}) answered within {} ms in agreement {} on who is left{}", rank,
          answered.count(), members.count(), list(answered, size), waited, epoch,
          is_quorum(answered)
              ? ", but not for long enough to decide"
              : fmt::format("; more than half of them are needed to go on, or half with rank {}", lowest)));
}

Membership::Membership(Transport& transport, Deadline deadline) {
  if (!transport.capabilities().maskable) {
    throw Error(Errc::unavailable, fmt::format("rank {}: transport {} cannot go on without a rank",
                                               transport.world().rank, transport.name()));
  }
  if (!transport.claim_membership())
    throw Error(
        Errc::invalid_state,
        fmt::format(
            "rank {}: another object decides already who is lost on this transport; one at a time may",
            transport.world().rank));
  try {
    impl_ = std::make_unique<Impl>(transport, deadline);
  } catch (...) {
    transport.release_membership();
    throw;
  }
  transport.set_wait_breaker(impl_.get());
}

Membership::~Membership() {
  impl_->transport.set_wait_breaker(nullptr);
  impl_->transport.release_membership();
}

bool Membership::Impl::requested() {
  for (std::int32_t look = 0; look < std::min(kLooks, size); ++look) {
    const std::int32_t one = next_look;
    next_look = one + 1 < size ? one + 1 : 0;
    if (one != rank && members.has(one) && mailbox.epoch_of(one) > completed) return true;
  }
  return false;
}

bool Membership::requested() {
  return impl_->requested();
}

Agreement Membership::agree(std::span<const std::int32_t> suspects, std::int64_t value,
                            std::chrono::milliseconds window) {
  Impl& impl = *impl_;
  if (impl.dead) {
    throw Error(Errc::invalid_state,
                fmt::format("rank {}: an agreement after one that this rank was not part of", impl.rank));
  }
  if (window < std::chrono::milliseconds(1)) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: a window of {} ms; 1 or more are allowed", impl.rank, window.count()));
  }
  impl.join(suspects, value, window);
  constexpr int kYields = 20;
  constexpr auto kLongestSleep = std::chrono::microseconds(500);
  auto sleep = std::chrono::microseconds(20);
  for (int idle = 0;; ++idle) {
    impl.now = Clock::now();
    impl.receive(false);
    impl.vote();
    impl.propose();
    const Choice* decision = impl.find_decision();
    if (decision != nullptr) return impl.conclude(*decision);
    if (impl.now - impl.joined_at >= kPatience * impl.window) impl.give_up();
    impl.put_states();
    if (std::exchange(impl.changed, false)) {
      idle = 0;
      sleep = std::chrono::microseconds(20);
    }
    if (idle < kYields) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(sleep);
      sleep = std::min(2 * sleep, kLongestSleep);
    }
  }
}

}  // namespace shunt

// Who is left: ranks that are killed, stopped or cut off at random moments, and what the others agree on.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/membership.h>
#include <shunt/transport/wrap.h>

#include "multiprocess/processes.h"

namespace shunt {
namespace {

using namespace std::chrono_literals;
using multiprocess::SharedWords;
using multiprocess::strike_after;
using multiprocess::wait_for_state;

[[nodiscard]] Deadline patience() {
  return Clock::now() + 60s;
}

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

[[nodiscard]] std::int64_t bits(const std::vector<std::int32_t>& ranks) {
  std::int64_t result = 0;
  for (const std::int32_t rank : ranks) result |= std::int64_t{1} << rank;
  return result;
}

[[nodiscard]] std::string text(const std::vector<std::int32_t>& ranks) {
  std::string result;
  for (const std::int32_t rank : ranks) result += (result.empty() ? "" : ", ") + std::to_string(rank);
  return "{" + result + "}";
}

/// The rank that a failed wait names.
[[nodiscard]] std::vector<std::int32_t> named_in(const std::string& message) {
  for (const char* words : {"lost rank ", "waiting for rank "}) {
    const auto at = message.find(words);
    if (at != std::string::npos) return {std::atoi(message.c_str() + at + std::string(words).size())};
  }
  return {};
}

// Shared words of a run: a counter for every stage, then one row for every rank.
constexpr std::size_t kStruck = 0;
constexpr std::size_t kFinished = 1;
constexpr std::size_t kPids = 16;
constexpr std::size_t kResults = 32;
constexpr std::size_t kResultWords = 4;  // members, lost in all, agreements, highest

struct Strike {
  std::int32_t rank = 0;
  std::chrono::microseconds delay{};
  bool in_agreement = false;  ///< Counted from the rank's first call of agree()
};

struct StrikeRun {
  std::int32_t ranks = 2;
  std::vector<Strike> strikes;
  bool stop = false;    ///< Else kill
  bool resume = false;  ///< Stopped ranks go on once the others are done
  bool put_only = false;
  std::chrono::milliseconds window{2400};
};

/// Steps until all strikes have fallen and all that are left know it.
int survive(const StrikeRun& run, const SharedWords& words, Transport& transport) {
  const std::int32_t rank = transport.world().rank;
  const auto size = static_cast<std::size_t>(transport.world().size);
  words[kPids + static_cast<std::size_t>(rank)].store(getpid());
  Membership membership(transport, patience());
  auto collectives = transport.make_collectives(64, patience());
  const auto mine = std::find_if(run.strikes.begin(), run.strikes.end(),
                                 [&](const Strike& strike) { return strike.rank == rank; });
  const auto arm = [&](bool in_agreement) {
    if (mine == run.strikes.end() || mine->in_agreement != in_agreement) return;
    words[kStruck].fetch_add(1);
    if (run.stop) {
      strike_after<SIGSTOP>(mine->delay);
    } else {
      strike_after<SIGKILL>(mine->delay);
    }
  };
  arm(false);
  std::int64_t lost = 0;
  std::int64_t members = (std::int64_t{1} << size) - 1;
  std::int64_t agreements = 0;
  std::int64_t highest = -1;
  std::int64_t expected = 0;
  for (const Strike& strike : run.strikes) expected |= std::int64_t{1} << strike.rank;
  bool armed_inside = false;
  while (true) {
    std::vector<std::int32_t> suspects;
    bool agree = membership.requested();
    try {
      if (!agree) {
        // Done when every member has seen all lost ranks lost.
        const std::int64_t done = lost == expected ? 1 : 0;
        std::vector<std::int64_t> all(size, 1);
        collectives->allgather(&done, 8, all.data(), 400ms);
        // A rank that is done makes no further calls, in which a wrapper could send what it holds.
        transport.quiet();
        if (std::all_of(all.begin(), all.end(), [](std::int64_t one) { return one == 1; })) break;
        std::this_thread::sleep_for(1ms);
      }
    } catch (const Error& error) {
      suspects = named_in(error.what());
      agree = true;
    }
    if (!agree) continue;
    if (!armed_inside) arm(true);
    armed_inside = true;
    const auto begun = Clock::now();
    const Agreement agreement = membership.agree(suspects, 100 * agreements + rank, run.window);
    require(Clock::now() - begun < 4 * run.window + 30s, "an agreement took far too long");
    ++agreements;
    lost |= bits(agreement.lost);
    members = bits(agreement.members);
    highest = agreement.highest;
    require((members & lost) == 0, "a rank is both lost and left");
    require(std::find(agreement.members.begin(), agreement.members.end(), rank) != agreement.members.end(),
            "this rank is not a member and goes on");
    for (std::int32_t one = 0; one < transport.world().size; ++one) {
      require(transport.excluded(one) == ((lost >> one & 1) != 0), "excluded ranks are not the lost ones");
    }
    collectives = nullptr;
    while (collectives == nullptr) {
      try {
        collectives = transport.make_collectives(64, Clock::now() + 2s);
      } catch (const Error& error) {
        // The next one fell meanwhile; without collectives only an agreement is left.
        const Agreement next = membership.agree(named_in(error.what()), 100 * agreements + rank, run.window);
        ++agreements;
        lost |= bits(next.lost);
        members = bits(next.members);
        highest = next.highest;
      }
    }
  }
  const std::size_t row = kResults + static_cast<std::size_t>(rank) * kResultWords;
  words[row].store(members);
  words[row + 1].store(lost);
  words[row + 2].store(agreements);
  words[row + 3].store(highest);
  words[kFinished].fetch_add(1);
  words.wait_for(kFinished, static_cast<std::int64_t>(size - run.strikes.size()));
  if (run.resume) {
    for (const Strike& strike : run.strikes) {
      const auto pid = static_cast<pid_t>(words[kPids + static_cast<std::size_t>(strike.rank)].load());
      wait_for_state(pid, "TZX");
      kill(pid, SIGCONT);
      wait_for_state(pid, "ZX");
    }
  }
  return 0;
}

void expect_survivors_agree(const StrikeRun& run) {
  std::string what = std::to_string(run.ranks) + " ranks, " + (run.stop ? "stopped:" : "killed:");
  for (const Strike& strike : run.strikes) {
    what += " rank " + std::to_string(strike.rank) + " after " + std::to_string(strike.delay.count()) +
            (strike.in_agreement ? " us in an agreement" : " us");
  }
  SCOPED_TRACE(what);
  const SharedWords words;
  const auto outcomes = run_ranks({.ranks = run.ranks}, [&](Transport& inner) {
    if (!run.put_only) return survive(run, words, inner);
    const auto wrapped = make_delayed(inner, {.seed = 9, .hide_load_store = true});
    return survive(run, words, *wrapped);
  });
  std::vector<std::int32_t> victims;
  for (const Strike& strike : run.strikes) victims.push_back(strike.rank);
  const std::int64_t everybody = (std::int64_t{1} << run.ranks) - 1;
  std::int64_t agreements = -1;
  std::int64_t highest = -1;
  for (const RankOutcome& outcome : outcomes) {
    const auto row = kResults + static_cast<std::size_t>(outcome.rank) * kResultWords;
    if (std::find(victims.begin(), victims.end(), outcome.rank) != victims.end()) {
      if (run.resume) {
        EXPECT_EQ(outcome.code, Errc::peer_lost) << "rank " << outcome.rank << ": " << outcome.message;
        EXPECT_EQ(outcome.signal, 0) << outcome.message;
      } else {
        EXPECT_EQ(outcome.signal, SIGKILL) << "rank " << outcome.rank << ": " << outcome.message;
      }
      continue;
    }
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
    EXPECT_EQ(words[row].load(), everybody & ~bits(victims)) << "members of rank " << outcome.rank;
    EXPECT_EQ(words[row + 1].load(), bits(victims)) << "lost to rank " << outcome.rank;
    if (agreements < 0) agreements = words[row + 2].load();
    if (highest < 0) highest = words[row + 3].load();
    EXPECT_EQ(words[row + 2].load(), agreements) << "agreements of rank " << outcome.rank;
    EXPECT_EQ(words[row + 3].load(), highest) << "highest value to rank " << outcome.rank;
  }
}

[[nodiscard]] std::chrono::microseconds up_to(Random& random, std::int64_t most_us) {
  return std::chrono::microseconds(1 + random.below(static_cast<std::uint64_t>(most_us)));
}

/// A rank without which the others are more than half, or half with rank 0.
[[nodiscard]] std::int32_t any_victim(Random& random, std::int32_t ranks) {
  return ranks == 2 ? 1 : static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(ranks)));
}

TEST(MembershipTest, AgreesAfterAKilledRank) {
  Random random(31);
  for (int run = 0; run < 12; ++run) {
    const auto ranks = static_cast<std::int32_t>(2 + run % 7);
    const std::int32_t victim = run % 3 == 0 && ranks > 2 ? 0 : any_victim(random, ranks);
    expect_survivors_agree({.ranks = ranks,
                            .strikes = {{.rank = victim, .delay = up_to(random, 30'000)}},
                            .put_only = run % 2 == 1});
  }
}

TEST(MembershipTest, AgreesAfterAStoppedRank) {
  Random random(32);
  for (int run = 0; run < 8; ++run) {
    const auto ranks = static_cast<std::int32_t>(2 + (run * 3) % 7);
    const std::int32_t victim = run % 3 == 1 && ranks > 2 ? 0 : any_victim(random, ranks);
    expect_survivors_agree({.ranks = ranks,
                            .strikes = {{.rank = victim, .delay = up_to(random, 30'000)}},
                            .stop = true,
                            .resume = run % 2 == 0,
                            .put_only = run % 4 >= 2});
  }
}

TEST(MembershipTest, AgreesWhenMoreRanksFallTogetherOrDuringTheAgreement) {
  Random random(33);
  for (int run = 0; run < 10; ++run) {
    const auto ranks = static_cast<std::int32_t>(5 + random.below(4));
    const auto first = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(ranks)));
    // Often the rank that would lead the agreement.
    std::int32_t second = run % 2 == 0 ? 0 : static_cast<std::int32_t>(random.below(5));
    if (second == first) second = first == 0 ? 1 : 0;
    const bool inside = run % 4 != 3;
    expect_survivors_agree({.ranks = ranks,
                            .strikes = {{.rank = first, .delay = up_to(random, 20'000)},
                                        {.rank = second,
                                         .delay = up_to(random, inside ? 700'000 : 20'000),
                                         .in_agreement = inside}},
                            .stop = run % 5 == 4,
                            .put_only = run % 2 == 1});
  }
}

TEST(MembershipTest, KeepsEverybodyAfterAFalseAlarmAndAgreesAgain) {
  for (const RankMode mode : {RankMode::processes, RankMode::threads}) {
    const auto outcomes = run_ranks({.ranks = 5, .mode = mode}, [](Transport& transport) {
      const std::int32_t rank = transport.world().rank;
      Membership membership(transport, patience());
      for (std::int64_t round = 0; round < 5; ++round) {
        std::vector<std::int32_t> suspects;
        if (rank == 3) {
          suspects = {0};
        } else {
          const auto end = patience();
          while (!membership.requested()) {
            require(Clock::now() < end, "no request of an agreement has come");
            std::this_thread::sleep_for(100us);
          }
        }
        const Agreement agreement = membership.agree(suspects, 10 * round + rank, 10s);
        require(agreement.lost.empty(), "lost " + text(agreement.lost));
        require(agreement.members == std::vector<std::int32_t>{0, 1, 2, 3, 4}, text(agreement.members));
        require(agreement.highest == 10 * round + 4, "highest is " + std::to_string(agreement.highest));
        require(!membership.requested(), "an agreement is asked for that is over");
        const auto collectives = transport.make_collectives(8, patience());
        collectives->barrier(60s);
        collectives->barrier(60s);
      }
      return 0;
    });
    for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
  }
}

TEST(MembershipTest, EndsWaitsOfRanksThatHaveNotNoticedALoss) {
  for (const bool in_collective : {false, true}) {
    const auto outcomes = run_ranks({.ranks = 3}, [&](Transport& transport) {
      const std::int32_t rank = transport.world().rank;
      Membership membership(transport, patience());
      SymmetricBuffer words = transport.allocate(kSignalStride, "test", patience());
      const auto collectives = transport.make_collectives(8, patience());
      if (rank != 2) {
        // Nobody is lost and the deadline is far: only the request can end the wait.
        std::int32_t peer = 0;
        try {
          if (in_collective)
            collectives->barrier(600s);
          else
            transport.wait_signal(words, 0, 1, Clock::now() + 600s, {.phase = "test", .peer = 2});
        } catch (const Error& error) {
          require(error.code() == Errc::peer_lost, error.what());
          require(std::string(error.what()).find("asks who is left") != std::string::npos, error.what());
          peer = error.peer();
        }
        require(peer == -1, "the wait has not ended, or blames rank " + std::to_string(peer));
      }
      const Agreement agreement =
          rank == 2 ? membership.agree(std::vector<std::int32_t>{0}, 0, 60s) : membership.agree({}, 0, 60s);
      require(agreement.lost.empty(), "lost " + text(agreement.lost));
      // Nobody was accused, so waits work as before.
      const auto after = transport.make_collectives(8, patience());
      after->barrier(60s);
      transport.release(words);
      return 0;
    });
    for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
  }
}

TEST(MembershipTest, ShrinksToOneRankStepByStep) {
  const auto outcomes = run_ranks({.ranks = 6}, [](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    Membership membership(transport, patience());
    // From the top: in the last step half is left, and it has the lowest rank.
    for (std::int32_t victim = 5; victim > 0; --victim) {
      if (rank == victim) std::raise(SIGKILL);
      const std::vector<std::int32_t> suspects{victim};
      const Agreement agreement = membership.agree(suspects, rank, 2s);
      require(agreement.lost == suspects, "lost " + text(agreement.lost));
      require(agreement.highest == victim - 1, "highest is " + std::to_string(agreement.highest));
      const auto collectives = transport.make_collectives(8, patience());
      collectives->barrier(60s);
    }
    return 0;
  });
  EXPECT_EQ(outcomes.at(0).exit_status, 0) << outcomes.at(0).message;
  for (std::size_t rank = 1; rank < 6; ++rank) EXPECT_EQ(outcomes.at(rank).signal, SIGKILL);
}

TEST(MembershipTest, LeavesOutARankThatComesTooLate) {
  const SharedWords words;
  const auto outcomes = run_ranks({.ranks = 3}, [&](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    Membership membership(transport, patience());
    if (rank == 1) {
      words.wait_for(0, 2);
      require(membership.requested(), "the others' agreement is not seen");
      try {
        static_cast<void>(membership.agree({}, 0, 2s));
      } catch (const Error&) {
        words[1].store(1);
        throw;
      }
      return 0;
    }
    const std::vector<std::int32_t> suspects{1};
    const Agreement agreement = membership.agree(suspects, 0, 2s);
    require(agreement.lost == suspects, "lost " + text(agreement.lost));
    words[0].fetch_add(1);
    // With the last survivor's release the memory goes, and with it what the late rank is told.
    words.wait_for(1, 1);
    return 0;
  });
  EXPECT_EQ(outcomes.at(0).exit_status, 0) << outcomes.at(0).message;
  EXPECT_EQ(outcomes.at(2).exit_status, 0) << outcomes.at(2).message;
  EXPECT_EQ(outcomes.at(1).code, Errc::peer_lost);
  EXPECT_NE(outcomes.at(1).message.find("rank 1: the others went on without it"), std::string::npos)
      << outcomes.at(1).message;
  EXPECT_NE(outcomes.at(1).message.find("ranks 0, 2 are left"), std::string::npos) << outcomes.at(1).message;
}

TEST(MembershipTest, GivesUpWhereTooFewAreLeft) {
  const auto outcomes = run_ranks({.ranks = 4}, [](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    Membership membership(transport, patience());
    if (rank == 0 || rank == 2) std::raise(SIGKILL);
    const std::vector<std::int32_t> suspects{0, 2};
    static_cast<void>(membership.agree(suspects, 0, 300ms));
    return 0;
  });
  for (const std::size_t rank : {std::size_t{1}, std::size_t{3}}) {
    EXPECT_EQ(outcomes.at(rank).code, Errc::peer_lost);
    EXPECT_NE(outcomes.at(rank).message.find(": 2 of 4 ranks (1, 3) answered within "), std::string::npos)
        << outcomes.at(rank).message;
    EXPECT_NE(outcomes.at(rank).message.find("or half with rank 0"), std::string::npos)
        << outcomes.at(rank).message;
  }
}

/// Drops what goes from one side to the other from a moment on.
class CutTransport final : public Transport {
 public:
  CutTransport(Transport& inner, std::int64_t side, Deadline from)
      : Transport(inner.world()), inner_(inner), side_(side), from_(from) {}
  [[nodiscard]] std::string_view name() const noexcept override { return inner_.name(); }
  [[nodiscard]] Capabilities capabilities() const noexcept override { return inner_.capabilities(); }
  SymmetricBuffer allocate(std::int64_t bytes, const char* what, Deadline deadline) override {
    return inner_.allocate(bytes, what, deadline);
  }
  void release(SymmetricBuffer& buffer) noexcept override { inner_.release(buffer); }
  [[nodiscard]] std::byte* peer_pointer(const SymmetricBuffer& buffer,
                                        std::int32_t peer) const noexcept override {
    return peer == world_.rank ? inner_.peer_pointer(buffer, peer) : nullptr;
  }
  void put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
           std::int64_t bytes) override {
    if (reaches(peer)) inner_.put(buffer, peer, offset, from, bytes);
  }
  void put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
                  std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) override {
    if (reaches(peer)) inner_.put_signal(buffer, peer, offset, from, bytes, signal_offset, value);
  }
  void signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
              std::uint64_t value) override {
    if (reaches(peer)) inner_.signal(buffer, peer, signal_offset, value);
  }
  std::uint64_t wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset, std::uint64_t value,
                            Deadline deadline, const WaitSite& site) override {
    return inner_.wait_signal(buffer, signal_offset, value, deadline, site);
  }
  std::uint64_t poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) override {
    return inner_.poll_signal(buffer, signal_offset);
  }
  void fence() override { inner_.fence(); }
  void quiet() override { inner_.quiet(); }
  void exclude(std::span<const std::int32_t> ranks) override {
    inner_.exclude(ranks);
    excluded_.resize(static_cast<std::size_t>(world_.size));
    for (const std::int32_t rank : ranks) excluded_[static_cast<std::size_t>(rank)] = 1;
  }

 private:
  [[nodiscard]] bool on_side(std::int32_t rank) const { return (side_ >> rank & 1) != 0; }
  [[nodiscard]] bool reaches(std::int32_t peer) const {
    return on_side(peer) == on_side(world_.rank) || Clock::now() < from_;
  }

  Transport& inner_;
  std::int64_t side_;
  Deadline from_;
};

/// Agreements follow each other until only ranks of one side are left. `side` has rank r as bit r. Result: the
/// ranks that went on, of whom it expects that they are of one side and know of each other, and that all others
/// ended with an error.
std::int64_t partition(std::int32_t ranks, std::int64_t side, std::chrono::microseconds cut_after,
                       bool delayed, std::chrono::milliseconds window) {
  const std::int64_t everybody = (std::int64_t{1} << ranks) - 1;
  SCOPED_TRACE(std::to_string(ranks) + " ranks, one side " + std::to_string(side) + ", cut after " +
               std::to_string(cut_after.count()) + " us");
  const SharedWords words;
  const Deadline cut_at = Clock::now() + cut_after;
  const auto outcomes = run_ranks({.ranks = ranks}, [&](Transport& inner) {
    const std::int32_t rank = inner.world().rank;
    CutTransport cut(inner, side, cut_at);
    const auto wrapped = make_delayed(cut, {.seed = 4, .probability = delayed ? 0.5 : 0.0});
    Membership membership(*wrapped, patience());
    const std::int64_t other_side = (side >> rank & 1) != 0 ? everybody & ~side : side;
    std::int64_t agreements = 0;
    Agreement agreement;
    do {
      agreement = membership.agree({}, 10 * agreements + rank, window);
      ++agreements;
    } while ((bits(agreement.members) & other_side) != 0);
    const std::size_t row = kResults + static_cast<std::size_t>(rank) * kResultWords;
    words[row].store(bits(agreement.members));
    words[row + 2].store(agreements);
    words[row + 3].store(agreement.highest);
    return 0;
  });
  std::int64_t went_on = 0;
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.exit_status == 0) {
      went_on |= std::int64_t{1} << outcome.rank;
    } else {
      EXPECT_EQ(outcome.code, Errc::peer_lost) << "rank " << outcome.rank << ": " << outcome.message;
    }
  }
  EXPECT_TRUE((went_on & side) == 0 || (went_on & ~side) == 0) << "both sides went on: " << went_on;
  std::size_t first = 0;
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.exit_status != 0) continue;
    const auto row = kResults + static_cast<std::size_t>(outcome.rank) * kResultWords;
    if (first == 0) first = row;
    EXPECT_EQ(words[row].load(), went_on) << "members of rank " << outcome.rank;
    EXPECT_EQ(words[row + 2].load(), words[first + 2].load()) << "agreements of rank " << outcome.rank;
    EXPECT_EQ(words[row + 3].load(), words[first + 3].load()) << "highest value to rank " << outcome.rank;
  }
  return went_on;
}

TEST(MembershipTest, LetsOneSideOfAPartitionGoOn) {
  Random random(34);
  constexpr int kRuns = 10;
  int none = 0;
  for (int run = 0; run < kRuns; ++run) {
    const auto ranks = static_cast<std::int32_t>(2 + random.below(7));
    const auto side = static_cast<std::int64_t>(1 + random.below((std::uint64_t{1} << ranks) - 2));
    if (partition(ranks, side, up_to(random, 40'000), run % 2 == 1, 700ms) == 0) ++none;
  }
  // Where the cut falls between the last acceptance and its news, it may be that nobody can go on; and so where a rank
  // of the larger side was kept from the processor for a quarter of the window.
  EXPECT_LE(none, kRuns / 2);
}

TEST(MembershipTest, LetsMoreThanHalfOrTheLowestRanksHalfGoOn) {
  constexpr auto kWide = 2000ms;  // No rank of these sets may be taken for silent
  EXPECT_EQ(partition(5, 0b00011, 0us, false, kWide), 0b11100);
  EXPECT_EQ(partition(7, 0b1111000, 0us, true, kWide), 0b1111000);
  EXPECT_EQ(partition(2, 0b10, 0us, false, kWide), 0b01);
  EXPECT_EQ(partition(4, 0b1010, 0us, true, kWide), 0b0101);
  EXPECT_EQ(partition(8, 0b01011010, 0us, true, kWide), 0b10100101);
}

}  // namespace
}  // namespace shunt

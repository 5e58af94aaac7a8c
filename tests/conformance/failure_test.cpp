#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>

#include "conformance/world_case.h"

namespace shunt::conformance {
namespace {

using namespace std::chrono_literals;

class FailureConformance : public TransportConformance {
 protected:
  /// The body of a rank; it calls `meet` when it is done, since whoever ended would be a lost peer for those who still
  /// wait.
  using MeetingBody = std::function<void(Transport&, const std::function<void()>& meet)>;

  /// Runs `body` and expects every rank to return. A rank that a crowded machine keeps from the processor for a quarter
  /// of a second does not show in time that it waits, and the others blame it: a run with a wrong blame is repeated,
  /// twice at most. Processes of a job cannot agree to repeat and run once.
  static void run_well_unless_stalled(const MeetingBody& body) {
    for (int more = job() == nullptr ? 2 : 0; more > 0; --more) {
      const std::vector<RankOutcome> outcomes = run_together(body);
      const auto wrong = [](const RankOutcome& outcome) { return outcome.code == Errc::check_failed; };
      if (std::none_of(outcomes.begin(), outcomes.end(), wrong)) return expect_well(outcomes);
    }
    expect_well(run_together(body));
  }

 private:
  static std::vector<RankOutcome> run_together(const MeetingBody& body) {
    const SharedCounter done;
    return run([&](Transport& transport) {
      try {
        body(transport, [&] {
          done.add();
          done.wait_for(transport.world().size);
        });
      } catch (...) {
        done.add();  // The others need not wait for who has failed
        throw;
      }
    });
  }
};

/// Silence of a peer that is still there.
constexpr auto kShort = 200ms;

[[nodiscard]] std::string waiting(std::int32_t peer, const std::string& phase) {
  return " waiting for rank " + std::to_string(peer) + " in " + phase;
}

/// Every rank blames `missing`: by its own timeout, or since another rank gave up on it.
void require_blames(std::int32_t missing, std::int32_t rank, const std::string& phase,
                    const std::function<void()>& call) {
  const std::string self = "rank " + std::to_string(rank) + ": ";
  try {
    call();
  } catch (const Error& error) {
    const std::string message = error.what();
    if (error.code() == Errc::timeout) {
      require_contains(message, self + "timed out after ");
      require_contains(message, waiting(missing, phase));
    } else {
      require(error.code() == Errc::peer_lost, message);
      require_contains(message, self + "lost rank " + std::to_string(missing) + " (");
    }
    return;
  }
  throw Error(Errc::check_failed, self + "nothing was thrown");
}

/// Ranks that wait for each other in a circle: none is to blame, and each reports its own wait.
TEST_P(FailureConformance, NamesRankPhaseAndPeerInATimeout) {
  run_well_unless_stalled([](Transport& transport, const std::function<void()>& meet) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    auto buffer = transport.allocate(kSignalStride, "words", patience());
    const std::int32_t peer = (rank + 1) % size;
    const std::string message = message_of(Errc::timeout, [&] {
      transport.wait_signal(buffer, 0, 1, Clock::now() + kShort, {.phase = "dispatch", .peer = peer});
    });
    require_contains(message, "rank " + std::to_string(rank) + ": timed out after ");
    require_contains(message, " ms" + waiting(peer, "dispatch"));
    meet();
  });
}

TEST_P(FailureConformance, NamesTheMissingRankInACollective) {
  if (ranks() == 1) GTEST_SKIP() << "one rank waits for nobody";
  run_well_unless_stalled([](Transport& transport, const std::function<void()>& meet) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    const auto collectives = transport.make_collectives(8, patience());
    // The last rank stays away.
    if (rank != size - 1) {
      require_blames(size - 1, rank, "barrier", [&] { collectives->barrier(kShort); });
    }
    meet();
  });
}

TEST_P(FailureConformance, NamesTheMissingRankInAnAllocation) {
  if (ranks() == 1) GTEST_SKIP() << "one rank waits for nobody";
  run_well_unless_stalled([](Transport& transport, const std::function<void()>& meet) {
    const std::int32_t rank = transport.world().rank;
    if (rank != 0) {
      require_blames(0, rank, "allocate",
                     [&] { static_cast<void>(transport.allocate(8, "words", Clock::now() + kShort)); });
    }
    meet();
  });
}

TEST_P(FailureConformance, BlamesTheRankAtTheEndOfAChainOfWaits) {
  if (ranks() < 3) GTEST_SKIP() << "needs three ranks";
  run_well_unless_stalled([](Transport& transport, const std::function<void()>& meet) {
    const std::int32_t rank = transport.world().rank;
    auto buffer = transport.allocate(kSignalStride, "words", patience());
    // Rank r waits for r - 1, and rank 0 for nobody: it is elsewhere. The last rank is the first to give up.
    if (rank > 0) {
      require_blames(0, rank, "combine", [&] {
        const std::chrono::milliseconds wait = rank == transport.world().size - 1 ? kShort : kPatience;
        transport.wait_signal(buffer, 0, 1, Clock::now() + wait, {.phase = "combine", .peer = rank - 1});
      });
    }
    meet();
  });
}

TEST_P(FailureConformance, LosesAPeerThatHasFinished) {
  if (ranks() == 1) GTEST_SKIP() << "one rank waits for nobody";
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    auto buffer = transport.allocate(kSignalStride, "words", patience());
    if (rank == 0) return;
    const std::string message = message_of(Errc::peer_lost, [&] {
      transport.wait_signal(buffer, 0, 1, patience(), {.phase = "combine", .peer = 0});
    });
    // Seen by this rank, or by another that was quicker and passed it on.
    require(message.find("lost rank 0 (it has finished) while") != std::string::npos ||
                message.find(" gave up on it in combine) while") != std::string::npos,
            message);
    require_contains(message, "rank " + std::to_string(rank) + ": lost rank 0 (");
    require_contains(message, waiting(0, "combine"));
  });
}

TEST_P(FailureConformance, HearsWhatAPeerSaidBeforeItFinished) {
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    const std::int32_t size = transport.world().size;
    auto buffer = transport.allocate(size * kSignalStride, "words", patience());
    for (std::int32_t peer = 0; peer < size; ++peer) transport.signal(buffer, peer, rank * kSignalStride, 1);
    transport.quiet();
    if (rank == 0) return;
    std::this_thread::sleep_for(30ms);
    for (std::int32_t peer = 0; peer < size; ++peer) {
      transport.wait_signal(buffer, peer * kSignalStride, 1, patience(), {.phase = "combine", .peer = peer});
    }
  });
}

TEST_P(FailureConformance, GoesOnWithoutAFinishedPeerThatNobodyWaitsFor) {
  if (ranks() < 3) GTEST_SKIP() << "needs three ranks";
  run_well([](Transport& transport) {
    const std::int32_t rank = transport.world().rank;
    auto buffer = transport.allocate(kSignalStride, "words", patience());
    if (rank == 2) {
      // Long enough that rank 1 sleeps and looks for lost peers.
      std::this_thread::sleep_for(60ms);
      transport.signal(buffer, 1, 0, 1);
      transport.quiet();
    }
    if (rank == 1) transport.wait_signal(buffer, 0, 1, patience(), {.phase = "combine", .peer = 2});
  });
}

TEST_P(FailureConformance, TellsTheOthersOfARankThatFailed) {
  if (ranks() == 1) GTEST_SKIP() << "one rank waits for nobody";
  if (job() != nullptr && job()->way() == LaunchWay::mpi)
    GTEST_SKIP() << "under MPI a failed rank ends the job";
  const std::vector<RankOutcome> outcomes = run([](Transport& transport) {
    const auto collectives = transport.make_collectives(8, patience());
    if (transport.world().rank == 1) throw Error(Errc::overflow, "the cup is full");
    for (int step = 0; step < 2; ++step) collectives->barrier(kPatience);
  });
  ASSERT_EQ(outcomes.size(), static_cast<std::size_t>(outcomes_here()));
  for (const RankOutcome& outcome : outcomes) {
    EXPECT_EQ(outcome.signal, 0);
    if (outcome.rank == 1) {
      EXPECT_EQ(outcome.message, "the cup is full");
      EXPECT_EQ(outcome.exit_status, exit_status(Errc::overflow));
    } else {
      EXPECT_EQ(outcome.exit_status, exit_status(Errc::peer_lost));
      EXPECT_NE(outcome.message.find("rank " + std::to_string(outcome.rank) + ": lost rank "),
                std::string::npos)
          << outcome.message;
      // Seen by this rank, or by another that was quicker and passed it on.
      const bool told =
          outcome.message.find("(it ended with an error) while waiting for rank ") != std::string::npos ||
          outcome.message.find(" gave up on it in ") != std::string::npos;
      EXPECT_TRUE(told) << outcome.message;
      EXPECT_NE(outcome.message.find(" in barrier"), std::string::npos) << outcome.message;
    }
  }
}

SHUNT_CONFORMANCE(FailureConformance);

}  // namespace
}  // namespace shunt::conformance

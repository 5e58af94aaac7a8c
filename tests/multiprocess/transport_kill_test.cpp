// Ranks that die or stop at a random moment: who is left says who is missing and where, and nothing stays
// behind.
#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>

namespace shunt {
namespace {

using namespace std::chrono_literals;

[[nodiscard]] std::set<std::string> shared_memory_files() {
  std::set<std::string> names;
  if (DIR* folder = opendir("/dev/shm")) {
    // Those of an Open MPI that runs beside come and go.
    while (const dirent* entry = readdir(folder))
      if (const std::string name = entry->d_name; name.find("_segment.") == std::string::npos)
        names.insert(name);
    closedir(folder);
  }
  return names;
}

/// Memory files that this process still has open or mapped.
[[nodiscard]] int open_files() {
  int count = 0;
  if (DIR* folder = opendir("/proc/self/fd")) {
    while (readdir(folder) != nullptr) ++count;
    closedir(folder);
  }
  return count;
}

/// Sends this process `signal_number` after `delay`, wherever it is then.
template <int signal_number>
void strike_after(std::chrono::microseconds delay) {
  struct sigaction action {};
  action.sa_handler = [](int) { kill(getpid(), signal_number); };
  sigaction(SIGALRM, &action, nullptr);
  const itimerval timer{.it_interval = {},
                        .it_value = {.tv_sec = 0, .tv_usec = static_cast<suseconds_t>(delay.count())}};
  setitimer(ITIMER_REAL, &timer, nullptr);
}

/// Barriers and allgathers until something breaks. `met` is called once the ranks have met.
[[noreturn]] void exchange_for_ever(Transport& transport, std::chrono::milliseconds deadline,
                                    const std::function<void()>& met = {}) {
  const auto collectives = transport.make_collectives(4096, Clock::now() + 60s);
  if (met) met();
  std::vector<std::byte> send(4096);
  std::vector<std::byte> receive(static_cast<std::size_t>(transport.world().size) * 4096);
  while (true) {
    collectives->barrier(deadline);
    collectives->allgather(send.data(), 64, receive.data(), deadline);
    collectives->allgather(send.data(), 4096, receive.data(), deadline);
  }
}

class TransportKillTest : public testing::Test {
 protected:
  void SetUp() override {
    files_ = shared_memory_files();
    open_files_ = open_files();
  }
  void TearDown() override {
    EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child process was left behind";
    EXPECT_EQ(errno, ECHILD);
    EXPECT_EQ(shared_memory_files(), files_);
    EXPECT_EQ(open_files(), open_files_);
  }

  /// Of a survivor: it names itself, a rank it waited for and the phase.
  static void expect_names(const RankOutcome& outcome, const std::string& cause) {
    const std::string& text = outcome.message;
    EXPECT_EQ(outcome.signal, 0);
    EXPECT_EQ(outcome.exit_status, 1);
    EXPECT_EQ(text.find("rank " + std::to_string(outcome.rank) + ": "), 0U) << text;
    EXPECT_NE(text.find(cause), std::string::npos) << text;
    EXPECT_NE(text.find(" waiting for rank "), std::string::npos) << text;
    EXPECT_TRUE(text.ends_with(" in barrier") || text.ends_with(" in allgather") ||
                text.ends_with(" in allocate"))
        << text;
  }

 private:
  std::set<std::string> files_;
  int open_files_ = 0;
};

TEST_F(TransportKillTest, TellsTheSurvivorsOfAKilledRank) {
  Random random(11);
  for (int run = 0; run < 20; ++run) {
    const auto ranks = static_cast<std::int32_t>(2 + random.below(7));
    const auto victim = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(ranks)));
    const auto delay = std::chrono::microseconds(1 + random.below(30'000));
    const auto outcomes = run_ranks({.ranks = ranks}, [&](Transport& transport) -> int {
      if (transport.world().rank == victim) strike_after<SIGKILL>(delay);
      exchange_for_ever(transport, 60s);
    });
    ASSERT_EQ(outcomes.size(), static_cast<std::size_t>(ranks));
    for (const RankOutcome& outcome : outcomes) {
      if (outcome.rank == victim) {
        EXPECT_EQ(outcome.signal, SIGKILL) << outcome.message;
      } else {
        expect_names(outcome, ": lost rank " + std::to_string(victim) + " (its process ended) while");
      }
    }
    EXPECT_EQ(combined_status(outcomes), 1);
  }
}

TEST_F(TransportKillTest, TellsTheSurvivorsOfSeveralKilledRanks) {
  Random random(12);
  for (int run = 0; run < 5; ++run) {
    std::vector<std::chrono::microseconds> delays;
    for (int rank = 0; rank < 3; ++rank) delays.emplace_back(1 + random.below(20'000));
    const auto outcomes = run_ranks({.ranks = 6}, [&](Transport& transport) -> int {
      const auto rank = static_cast<std::size_t>(transport.world().rank);
      if (rank < delays.size()) strike_after<SIGKILL>(delays[rank]);
      exchange_for_ever(transport, 60s);
    });
    for (const RankOutcome& outcome : outcomes) {
      if (outcome.signal != 0) continue;  // A later victim may hear of the first loss before its own time.
      expect_names(outcome, "(its process ended) while");
    }
  }
}

TEST_F(TransportKillTest, TellsTheOthersOfARankKilledBeforeTheyMet) {
  const auto outcomes = run_ranks({.ranks = 3}, [](Transport& transport) -> int {
    if (transport.world().rank == 2) std::raise(SIGKILL);
    exchange_for_ever(transport, 60s);
  });
  EXPECT_EQ(outcomes.at(2).signal, SIGKILL);
  expect_names(outcomes.at(0), ": lost rank 2 (its process ended) while");
  expect_names(outcomes.at(1), ": lost rank 2 (its process ended) while");
}

TEST_F(TransportKillTest, LeavesAStoppedRankToTheDeadline) {
  for (int run = 0; run < 3; ++run) {
    const auto outcomes = run_ranks({.ranks = 4}, [&](Transport& transport) -> int {
      exchange_for_ever(transport, 300ms, [&] {
        if (transport.world().rank == 1)
          strike_after<SIGSTOP>(std::chrono::microseconds(2'000 + 3'000 * run));
      });
    });
    bool timed_out = false;
    for (const RankOutcome& outcome : outcomes) {
      if (outcome.rank == 1) {
        EXPECT_EQ(outcome.signal, SIGKILL);
        EXPECT_EQ(outcome.message, "stopped, then killed by signal 9 (Killed)");
        continue;
      }
      // The first to give up accuses the stopped rank; the others hear of that before their own deadline.
      const bool timeout = outcome.message.find(": timed out after ") != std::string::npos;
      timed_out = timed_out || timeout || outcome.message.find("it does not answer") != std::string::npos;
      expect_names(outcome, timeout ? " waiting for rank 1 in " : ": lost rank 1 (");
    }
    EXPECT_TRUE(timed_out);
  }
}

TEST_F(TransportKillTest, GoesOnAfterAShortStop) {
  const auto outcomes = run_ranks({.ranks = 3}, [](Transport& transport) {
    const auto collectives = transport.make_collectives(8, Clock::now() + 60s);
    // Rank 0 stops rank 1 in its waits and lets it go on.
    const std::int64_t own = getpid();
    std::vector<std::int64_t> pids(3);
    collectives->allgather(&own, 8, pids.data(), 60s);
    for (int step = 0; step < 5; ++step) {
      if (transport.world().rank == 0) {
        kill(static_cast<pid_t>(pids[1]), SIGSTOP);
        usleep(20'000);
        kill(static_cast<pid_t>(pids[1]), SIGCONT);
      }
      collectives->barrier(60s);
    }
    return 0;
  });
  for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
}

TEST_F(TransportKillTest, KillsTheRanksOfAParentThatDies) {
  int pids[2];
  ASSERT_EQ(pipe(pids), 0);
  const pid_t parent = fork();
  ASSERT_GE(parent, 0);
  if (parent == 0) {
    close(pids[0]);
    run_ranks({.ranks = 2}, [&](Transport& transport) -> int {
      // Each rank keeps the pipe open, so its end of file says that none is left.
      if (transport.world().rank == 0 && write(pids[1], "x", 1) != 1) return 1;
      exchange_for_ever(transport, 60s);
    });
    _exit(0);
  }
  close(pids[1]);
  char byte = 0;
  ASSERT_EQ(read(pids[0], &byte, 1), 1);
  kill(parent, SIGKILL);
  EXPECT_EQ(waitpid(parent, nullptr, 0), parent);
  EXPECT_EQ(read(pids[0], &byte, 1), 0);
  close(pids[0]);
}

}  // namespace
}  // namespace shunt

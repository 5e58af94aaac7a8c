#include <gtest/gtest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <set>
#include <stdexcept>
#include <string>

#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>

namespace shunt {
namespace {

class LauncherTest : public testing::TestWithParam<RankMode> {};

[[nodiscard]] std::string refusal(const LaunchOptions& options, Errc code) {
  try {
    run_ranks(options, [](Transport&) { return 0; });
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code);
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return {};
}

TEST_P(LauncherTest, GivesEveryRankItsWorld) {
  const auto outcomes = run_ranks({.ranks = 5, .mode = GetParam()}, [](Transport& transport) {
    const World& world = transport.world();
    const bool right = world.size == 5 && world.local_rank == world.rank && world.node == 0 &&
                       transport.name() == "shm" && transport.capabilities().ordered;
    return right ? 10 + world.rank : 1;
  });
  ASSERT_EQ(outcomes.size(), 5U);
  for (std::size_t rank = 0; rank < outcomes.size(); ++rank) {
    EXPECT_EQ(outcomes[rank].rank, static_cast<std::int32_t>(rank));
    EXPECT_EQ(outcomes[rank].exit_status, 10 + static_cast<int>(rank));
    EXPECT_EQ(outcomes[rank].signal, 0);
    EXPECT_EQ(outcomes[rank].code, Errc::internal);
    EXPECT_EQ(outcomes[rank].message, "");
  }
  EXPECT_EQ(combined_status(outcomes), 10);
}

TEST_P(LauncherTest, ReportsWhatARankThrew) {
  const auto outcomes = run_ranks({.ranks = 4, .mode = GetParam()}, [](Transport& transport) -> int {
    switch (transport.world().rank) {
      case 0:
        throw Error(Errc::invalid_argument, "topk 9 of 8 experts");
      case 1:
        throw std::runtime_error(std::string(5000, 'x'));
      case 2:
        throw 5;
      default:
        return 0;
    }
  });
  EXPECT_EQ(outcomes.at(0).exit_status, 2);
  EXPECT_EQ(outcomes.at(0).code, Errc::invalid_argument);
  EXPECT_EQ(outcomes.at(0).message, "topk 9 of 8 experts");
  EXPECT_EQ(outcomes.at(1).exit_status, 1);
  EXPECT_EQ(outcomes.at(1).code, Errc::internal);
  EXPECT_EQ(outcomes.at(1).message.substr(0, 100), std::string(100, 'x'));
  EXPECT_EQ(outcomes.at(2).exit_status, 1);
  EXPECT_EQ(outcomes.at(2).code, Errc::internal);
  EXPECT_NE(outcomes.at(2).message.find("not an exception"), std::string::npos);
  EXPECT_EQ(outcomes.at(3).exit_status, 0);
  EXPECT_EQ(combined_status(outcomes), 2);
}

TEST_P(LauncherTest, ReportsTheCauseWhereOthersLostTheRank) {
  const auto outcomes = run_ranks({.ranks = 3, .mode = GetParam()}, [](Transport& transport) -> int {
    const auto collectives = transport.make_collectives(8, Clock::now() + std::chrono::seconds(60));
    if (transport.world().rank == 2) throw Error(Errc::out_of_memory, "the cupboard is full");
    for (int step = 0; step < 2; ++step) collectives->barrier(std::chrono::seconds(60));
    return 0;
  });
  EXPECT_EQ(outcomes.at(0).code, Errc::peer_lost) << outcomes.at(0).message;
  EXPECT_EQ(outcomes.at(1).code, Errc::peer_lost) << outcomes.at(1).message;
  EXPECT_EQ(outcomes.at(2).code, Errc::out_of_memory) << outcomes.at(2).message;
  EXPECT_EQ(combined_status(outcomes), 2);
}

TEST_P(LauncherTest, SplitsRanksEvenlyAmongTheNodesItPretendsToHave) {
  const auto outcomes = run_ranks({.ranks = 6, .nodes = 3, .mode = GetParam()}, [](Transport& transport) {
    const World& world = transport.world();
    const bool right = world.num_nodes() == 3 && world.node == world.rank / 2 &&
                       world.local_rank == world.rank % 2 && world.node_of(5) == 2 &&
                       transport.capabilities().load_store;
    return right ? 0 : 1;
  });
  EXPECT_EQ(combined_status(outcomes), 0);
}

TEST_P(LauncherTest, RefusesBadOptionsBeforeStarting) {
  const RankMode mode = GetParam();
  EXPECT_NE(
      refusal({.ranks = 4, .nodes = 3, .mode = mode}, Errc::invalid_argument).find("3 nodes for 4 ranks"),
      std::string::npos);
  EXPECT_NE(refusal({.ranks = 0, .mode = mode}, Errc::invalid_argument).find("0 ranks; 1 to 1024"),
            std::string::npos);
  EXPECT_NE(refusal({.ranks = 1025, .mode = mode}, Errc::invalid_argument).find("1 to 1024"),
            std::string::npos);
  EXPECT_EQ(refusal({.mode = mode, .transport = "smoke"}, Errc::invalid_argument),
            "transport 'smoke' is not known; allowed are: shm, mpi, ofi, cuda_ipc, nvshmem, nccl, auto");
}

TEST_P(LauncherTest, PinsRanksToTheCpusItMayUse) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  const std::int32_t cores = available_cores();
  const auto outcomes = run_ranks({.ranks = 3, .mode = GetParam(), .pin = true}, [&](Transport& transport) {
    cpu_set_t now;
    if (sched_getaffinity(0, sizeof now, &now) != 0 || CPU_COUNT(&now) != 1) return 1;
    std::int32_t index = 0;
    for (int cpu = 0; !CPU_ISSET(cpu, &now); ++cpu) index += CPU_ISSET(cpu, &before) ? 1 : 0;
    return index == transport.world().rank % cores ? 0 : 2;
  });
  EXPECT_EQ(combined_status(outcomes), 0);
  cpu_set_t after;
  ASSERT_EQ(sched_getaffinity(0, sizeof after, &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST_P(LauncherTest, RunsManyWorldsOneAfterAnother) {
  for (std::int32_t i = 0; i < 30; ++i) {
    const auto outcomes = run_ranks({.ranks = 1 + i % 4, .mode = GetParam()}, [](Transport&) { return 0; });
    EXPECT_EQ(combined_status(outcomes), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, LauncherTest, testing::Values(RankMode::processes, RankMode::threads),
                         [](const auto& mode) {
                           return std::string(mode.param == RankMode::processes ? "Processes" : "Threads");
                         });

TEST(LauncherProcessesTest, ReportsASignalAndReapsAll) {
  const auto outcomes = run_ranks({.ranks = 3}, [](Transport& transport) {
    if (transport.world().rank == 1) std::raise(SIGKILL);
    return 0;
  });
  EXPECT_EQ(outcomes.at(1).signal, SIGKILL);
  EXPECT_EQ(outcomes.at(1).exit_status, 128 + SIGKILL);
  EXPECT_EQ(outcomes.at(1).code, Errc::internal);
  EXPECT_EQ(outcomes.at(1).message, "killed by signal 9 (Killed)");
  EXPECT_EQ(outcomes.at(0).exit_status, 0);
  EXPECT_EQ(outcomes.at(2).exit_status, 0);
  EXPECT_EQ(combined_status(outcomes), 128 + SIGKILL);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(LauncherProcessesTest, ReportsARankThatCallsExit) {
  const auto outcomes = run_ranks({.ranks = 2}, [](Transport& transport) {
    if (transport.world().rank == 1) _exit(3);
    return 0;
  });
  EXPECT_EQ(outcomes.at(1).exit_status, 3);
  EXPECT_EQ(outcomes.at(1).signal, 0);
  EXPECT_EQ(outcomes.at(1).code, Errc::internal);
  EXPECT_EQ(outcomes.at(1).message, "left its function by exit(3)");
}

TEST(CombinedStatusTest, PrefersTheCauseToWhatFollowsFromIt) {
  const auto threw = [](Errc code) {
    return RankOutcome{.exit_status = exit_status(code), .code = code, .message = ""};
  };
  const RankOutcome returned{.exit_status = 7, .message = ""};
  const RankOutcome killed{.exit_status = 137, .signal = 9, .message = ""};
  EXPECT_EQ(combined_status({threw(Errc::peer_lost), threw(Errc::out_of_memory)}), 2);
  EXPECT_EQ(combined_status({threw(Errc::timeout), killed, threw(Errc::overflow)}), 2);
  EXPECT_EQ(combined_status({threw(Errc::peer_lost), returned}), 7);
  EXPECT_EQ(combined_status({killed, threw(Errc::peer_lost)}), 1);
  EXPECT_EQ(combined_status({killed, threw(Errc::timeout)}), 1);
}

TEST(CombinedStatusTest, PrefersWhatSurvivorsSay) {
  const auto ended = [](int status) { return RankOutcome{.exit_status = status, .message = ""}; };
  const RankOutcome killed{.exit_status = 137, .signal = 9, .message = ""};
  EXPECT_EQ(combined_status({}), 0);
  EXPECT_EQ(combined_status({ended(0), ended(0)}), 0);
  EXPECT_EQ(combined_status({killed, ended(1)}), 1);
  EXPECT_EQ(combined_status({killed, ended(0)}), 137);
  EXPECT_EQ(combined_status({ended(0), ended(2), ended(1)}), 2);
}

TEST(TransportRegistryTest, ListsEveryTransportOnceWithAReason) {
  std::set<std::string> names;
  for (const TransportInfo& info : transport_registry()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_FALSE(info.reason.empty()) << info.name;
  }
  EXPECT_TRUE(names.contains("shm"));
}

}  // namespace
}  // namespace shunt

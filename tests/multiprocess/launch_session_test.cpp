// Processes that meet by TCP and then share memory or a network, in a network namespace of their own.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>

#include "multiprocess/processes.h"
#include "network_namespace.h"

namespace shunt {
namespace {

using namespace std::chrono_literals;

/// What one process says at its end.
struct Report {
  int status = -1;
  std::string text;
};

/// Runs `body` in a process of its own for each index and returns what it returned.
[[nodiscard]] std::vector<Report> in_processes(int count, const std::function<std::string(int)>& body) {
  std::vector<pid_t> pids;
  std::vector<int> pipes;
  for (int index = 0; index < count; ++index) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    std::fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
      close(ends[0]);
      alarm(60);
      const std::string text = body(index);
      const bool written = write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
      _exit(written ? 0 : 1);
    }
    close(ends[1]);
    pids.push_back(pid);
    pipes.push_back(ends[0]);
  }
  std::vector<Report> reports(static_cast<std::size_t>(count));
  for (std::size_t index = 0; index < reports.size(); ++index) {
    char piece[4096];
    ssize_t got = 0;
    while ((got = read(pipes[index], piece, sizeof piece)) > 0)
      reports[index].text.append(piece, static_cast<std::size_t>(got));
    close(pipes[index]);
    waitpid(pids[index], &reports[index].status, 0);
  }
  return reports;
}

[[nodiscard]] Launch rank_launch(int rank, int size, int port) {
  Launch launch;
  launch.way = LaunchWay::rank;
  launch.world_size = size;
  launch.rank = rank;
  launch.local_rank = rank;
  launch.master_addr = "127.0.0.1";
  launch.master_port = port;
  return launch;
}

[[nodiscard]] LaunchOptions patient(const std::string& transport = "auto") {
  LaunchOptions options;
  options.transport = transport;
  options.start_deadline = 30s;
  return options;
}

/// Every rank tells every other its number, and adds what it got to the memory of a peer where it can.
int exchange(Transport& transport) {
  const World& world = transport.world();
  const auto collectives = transport.make_collectives(64, Clock::now() + 30s);
  const std::int64_t own = world.rank + 1;
  std::vector<std::int64_t> all(static_cast<std::size_t>(world.size));
  for (int turn = 0; turn < 20; ++turn) {
    collectives->allgather(&own, sizeof own, all.data(), 30s);
    for (std::int32_t rank = 0; rank < world.size; ++rank)
      if (all[static_cast<std::size_t>(rank)] != rank + 1) return 3;
  }
  auto buffer = transport.allocate(4096, "test", Clock::now() + 30s);
  const std::int32_t next = (world.rank + 1) % world.size;
  transport.put(buffer, next, 64, &own, sizeof own);
  transport.quiet();
  collectives->barrier(30s);
  const std::int32_t before = (world.rank + world.size - 1) % world.size;
  std::int64_t got = 0;
  std::memcpy(&got, buffer.local + 64, sizeof got);
  if (got != before + 1) return 4;
  if ((transport.peer_pointer(buffer, next) != nullptr) != (world.node_of(next) == world.node)) return 5;
  collectives->barrier(30s);
  transport.release(buffer);
  return 0;
}

[[nodiscard]] std::string describe(const std::vector<RankOutcome>& outcomes) {
  std::string text;
  for (const RankOutcome& outcome : outcomes)
    text += std::to_string(outcome.rank) + ":" + std::to_string(outcome.exit_status) + ":" + outcome.message +
            ";";
  return text;
}

class LaunchSessionTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string& reason = testing_support::enter_network_namespace();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_F(LaunchSessionTest, SharesMemoryBetweenProcessesThatWereStartedOneByOne) {
  const auto reports = in_processes(4, [](int rank) {
    LaunchSession session(rank_launch(rank, 4, 4711));
    EXPECT_EQ(session.leads(), rank == 0);
    return describe(session.run(patient(), [](Transport& transport) {
      if (!transport.capabilities().load_store || transport.name() != "shm") return 6;
      return exchange(transport);
    }));
  });
  for (std::size_t rank = 0; rank < reports.size(); ++rank)
    EXPECT_EQ(reports[rank].text, std::to_string(rank) + ":0:;");
}

TEST_F(LaunchSessionTest, MakesWorldAfterWorldAtOnePort) {
  const auto reports = in_processes(3, [](int rank) {
    LaunchSession session(rank_launch(rank, 3, 4711));
    std::string text;
    for (int world = 0; world < 10; ++world) text += describe(session.run(patient("shm"), exchange));
    return text;
  });
  for (std::size_t rank = 0; rank < reports.size(); ++rank) {
    std::string expected;
    for (int world = 0; world < 10; ++world) expected += std::to_string(rank) + ":0:;";
    EXPECT_EQ(reports[rank].text, expected);
  }
}

TEST_F(LaunchSessionTest, TellsTheOthersOfAKilledProcess) {
  const auto reports = in_processes(3, [](int rank) {
    LaunchSession session(rank_launch(rank, 3, 4711));
    return describe(session.run(patient(), [&](Transport& transport) -> int {
      const auto collectives = transport.make_collectives(8, Clock::now() + 30s);
      if (rank == 1) std::raise(SIGKILL);
      while (true) collectives->barrier(30s);
    }));
  });
  EXPECT_TRUE(WIFSIGNALED(reports[1].status));
  for (const std::size_t rank : {std::size_t{0}, std::size_t{2}}) {
    EXPECT_NE(reports[rank].text.find("lost rank 1 (its process ended)"), std::string::npos)
        << reports[rank].text;
  }
}

TEST_F(LaunchSessionTest, StartsTheRanksOfANode) {
  const auto reports = in_processes(2, [](int node) {
    Launch launch;
    launch.way = LaunchWay::node;
    launch.world_size = 4;
    launch.local_size = 2;
    launch.node_rank = node;
    launch.master_addr = "127.0.0.1";
    launch.master_port = 4711;
    LaunchSession session(launch);
    std::string text;
    for (int world = 0; world < 2; ++world) {
      LaunchOptions options = patient();
      // Without libfabric there is nothing between nodes.
      try {
        text += describe(session.run(options, exchange));
      } catch (const Error& error) {
        return error.code() == Errc::unavailable ? std::string("unavailable") : std::string(error.what());
      }
    }
    return text;
  });
  if (reports[0].text == "unavailable") GTEST_SKIP() << "no network transport in this build";
  EXPECT_EQ(reports[0].text, "0:0:;1:0:;0:0:;1:0:;");
  EXPECT_EQ(reports[1].text, "2:0:;3:0:;2:0:;3:0:;");
}

TEST_F(LaunchSessionTest, SeparatesNodesByTheirGivenName) {
  const auto reports = in_processes(4, [](int rank) {
    setenv("SHUNT_NODE", rank < 2 ? "a" : "b", 1);
    LaunchSession session(rank_launch(rank, 4, 4711));
    return describe(session.run(patient(), [&](Transport& transport) {
      const World& world = transport.world();
      if (world.num_nodes() != 2 || world.node != rank / 2 || world.local_rank != rank % 2) return 6;
      return exchange(transport);
    }));
  });
  if (reports[0].text.find("no libfabric") != std::string::npos) GTEST_SKIP() << reports[0].text;
  for (std::size_t rank = 0; rank < reports.size(); ++rank)
    EXPECT_EQ(reports[rank].text, std::to_string(rank) + ":0:;");
}

TEST_F(LaunchSessionTest, NamesTheRankThatDoesNotCome) {
  const auto reports = in_processes(3, [](int index) {
    const int rank = index == 2 ? 3 : index;  // Rank 2 of 4 stays away.
    LaunchOptions options = patient();
    options.start_deadline = rank == 0 ? 1500ms : 20'000ms;
    return describe(LaunchSession(rank_launch(rank, 4, 4711)).run(options, exchange));
  });
  EXPECT_NE(reports[0].text.find("rank 0: timed out after "), std::string::npos) << reports[0].text;
  EXPECT_NE(reports[0].text.find("waiting for rank 2 in start"), std::string::npos) << reports[0].text;
  EXPECT_NE(reports[1].text.find("rank 1: lost rank 2 ("), std::string::npos) << reports[1].text;
  EXPECT_NE(reports[2].text.find("rank 3: lost rank 2 ("), std::string::npos) << reports[2].text;
}

TEST_F(LaunchSessionTest, NamesRankZeroWhereNobodyListens) {
  const auto reports = in_processes(1, [](int) {
    LaunchOptions options = patient();
    options.start_deadline = 300ms;
    return describe(LaunchSession(rank_launch(1, 2, 4711)).run(options, exchange));
  });
  EXPECT_NE(reports[0].text.find("waiting for rank 0 in start at 127.0.0.1 port 4711: "), std::string::npos)
      << reports[0].text;
}

/// Says Hello as `rank` of `size` in world 1, as bootstrap/tcp_socket.h lays it out, then the bytes of `more`.
[[nodiscard]] int impersonate(int rank, int size, const std::string& more) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(4711);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (int turn = 0; turn < 5000; ++turn) {
    const int one = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(one, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      close(one);
      std::this_thread::sleep_for(1ms);
      continue;
    }
    struct {
      std::uint64_t magic = 0x31746e756873ULL;
      std::uint64_t cookie = 0;
      std::int32_t size = 0;
      std::int32_t rank = 0;
      std::uint32_t generation = 1;
      std::uint32_t unused = 0;
    } hello;
    std::string key = "shunt";
    for (const char* name : {"SHUNT_JOB", "SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID"}) {
      const char* value = std::getenv(name);
      key += std::string("\n") + (value == nullptr ? "" : value);
    }
    hello.cookie = std::hash<std::string>{}(key);
    hello.size = size;
    hello.rank = rank;
    std::string bytes(reinterpret_cast<const char*>(&hello), sizeof hello);
    bytes += more;
    EXPECT_EQ(send(one, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
    return one;
  }
  return -1;
}

TEST_F(LaunchSessionTest, GivesUpARankThatStopsWithinAMessageAndTellsTheOthers) {
  const auto reports = in_processes(3, [](int rank) {
    LaunchOptions options = patient();
    options.start_deadline = rank == 0 ? 1500ms : 20'000ms;
    if (rank != 1) return describe(LaunchSession(rank_launch(rank, 3, 4711)).run(options, exchange));
    // Half of a frame, and silence for longer than the deadline.
    const int socket = impersonate(rank, 3, std::string(8, '\1'));
    char unread[4096];
    while (socket >= 0 && recv(socket, unread, sizeof unread, 0) > 0) {
    }
    return std::string("ended");
  });
  EXPECT_NE(reports[0].text.find("rank 0: timed out after "), std::string::npos) << reports[0].text;
  EXPECT_NE(reports[0].text.find("waiting for rank 1 in "), std::string::npos) << reports[0].text;
  EXPECT_EQ(reports[1].text, "ended");
  EXPECT_NE(reports[2].text.find("rank 2: lost rank 1 ("), std::string::npos) << reports[2].text;
}

TEST_F(LaunchSessionTest, NamesTheRankThatFailsAtTheStart) {
  const auto reports = in_processes(3, [](int rank) {
    // What rank 1 sets is refused after the ranks have met.
    LaunchOptions options = patient(rank == 1 ? "nonsense" : "auto");
    return describe(LaunchSession(rank_launch(rank, 3, 4711)).run(options, exchange));
  });
  EXPECT_NE(reports[1].text.find("nonsense"), std::string::npos) << reports[1].text;
  EXPECT_NE(reports[0].text.find("lost rank 1 ("), std::string::npos) << reports[0].text;
  EXPECT_NE(reports[2].text.find("lost rank 1 ("), std::string::npos) << reports[2].text;
}

TEST_F(LaunchSessionTest, RefusesWhatDoesNotBelongToTheWorld) {
  // 0, 1: the world. 2: rank 1 once more. 3: another size. 4: an older world of the same job.
  const multiprocess::SharedWords words;  // 0: world 1 has failed. 1: how many are about to come.
  const auto reports = in_processes(5, [&words](int index) {
    const auto body = [](Transport& transport) {
      std::this_thread::sleep_for(500ms);
      return exchange(transport);
    };
    if (index == 0) {
      LaunchSession session(rank_launch(0, 3, 4711));
      // World 1 is a failure: its port is free again before anybody else comes.
      LaunchOptions options = patient();
      options.start_deadline = 50ms;
      static_cast<void>(session.run(options, body));
      words[0].store(1);
      return describe(session.run(patient(), body));
    }
    const auto later = [&](int rank, int size, int worlds) {
      LaunchSession session(rank_launch(rank, size, 4711));
      std::string text;
      for (int world = 0; world < worlds; ++world) {
        LaunchOptions options = patient();
        if (world + 1 < worlds) options.start_deadline = 1ms;
        text = describe(session.run(options, body));
      }
      return text;
    };
    words.wait_for(0, 1);
    words[1].fetch_add(1);
    if (index == 1) return later(1, 3, 2);
    if (index == 3) return later(1, 2, 2);
    if (index == 4) return later(2, 3, 1);
    words.wait_for(1, 4);
    std::this_thread::sleep_for(1000ms);
    const std::string twice = later(1, 3, 2);
    // Only now the world is whole.
    return twice + later(2, 3, 2);
  });
  EXPECT_EQ(reports[0].text, "0:0:;");
  EXPECT_EQ(reports[1].text, "1:0:;");
  EXPECT_NE(reports[2].text.find("another process is there already as this rank"), std::string::npos)
      << reports[2].text;
  EXPECT_NE(reports[2].text.find("2:0:;"), std::string::npos) << reports[2].text;
  EXPECT_NE(reports[3].text.find("its WORLD_SIZE is 2, and that of rank 0 is 3"), std::string::npos)
      << reports[3].text;
  EXPECT_NE(reports[4].text.find("it comes for world 1 of this job, but this is world 2"), std::string::npos)
      << reports[4].text;
}

TEST_F(LaunchSessionTest, IgnoresStrangersAtItsPort) {
  const auto reports = in_processes(3, [](int index) {
    if (index < 2) {
      std::this_thread::sleep_for(index == 1 ? 600ms : 0ms);
      return describe(LaunchSession(rank_launch(index, 2, 4711)).run(patient(), exchange));
    }
    // Some say nothing, one says something else.
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(4711);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int connected = 0;
    std::vector<int> sockets;
    for (int turn = 0; turn < 500 && connected < 3; ++turn) {
      const int one = socket(AF_INET, SOCK_STREAM, 0);
      sockets.push_back(one);
      if (connect(one, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        std::this_thread::sleep_for(1ms);
        continue;
      }
      ++connected;
      if (connected == 2 && send(one, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL) != 18)
        return std::string("send");
    }
    std::this_thread::sleep_for(800ms);
    for (const int one : sockets) close(one);
    return std::to_string(connected);
  });
  EXPECT_EQ(reports[0].text, "0:0:;");
  EXPECT_EQ(reports[1].text, "1:0:;");
  EXPECT_EQ(reports[2].text, "3");
}

}  // namespace
}  // namespace shunt

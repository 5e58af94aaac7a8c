// Ranks that go on without one of them over shared memory: what they allocate and exchange, and what a rank that
// was only stopped can still do to them.
#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

#include "multiprocess/processes.h"

namespace shunt {
namespace {

using namespace std::chrono_literals;
using multiprocess::process_state;
using multiprocess::SharedWords;
using multiprocess::strike_after;
using multiprocess::wait_for_state;

[[nodiscard]] Deadline patience() {
  return Clock::now() + 60s;
}

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

/// The message of the Error with `code` that `call` throws.
[[nodiscard]] std::string message_of(Errc code, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    require(error.code() == code, std::string("expected ") + errc_name(code) + ", got " + error.what());
    return error.what();
  }
  throw Error(Errc::check_failed, std::string("expected ") + errc_name(code) + ", but nothing was thrown");
}

[[nodiscard]] bool all_are(const std::byte* data, std::int64_t bytes, int value) {
  return std::all_of(data, data + bytes, [&](std::byte b) { return b == static_cast<std::byte>(value); });
}

/// Bytes that the world's memory file really has.
[[nodiscard]] std::int64_t file_bytes() {
  std::int64_t bytes = -1;
  DIR* folder = opendir("/proc/self/fd");
  require(folder != nullptr, "/proc/self/fd cannot be read");
  while (const dirent* entry = readdir(folder)) {
    std::array<char, 64> target{};
    const std::string path = std::string("/proc/self/fd/") + entry->d_name;
    if (readlink(path.c_str(), target.data(), target.size() - 1) < 0) continue;
    if (std::string(target.data()).find("memfd:shunt") == std::string::npos) continue;
    struct stat status {};
    if (stat(path.c_str(), &status) == 0) bytes = status.st_blocks * 512;
  }
  closedir(folder);
  require(bytes >= 0, "the memory file of the world was not found");
  return bytes;
}

void expect_survivors_end_well(const std::vector<RankOutcome>& outcomes,
                               const std::vector<std::int32_t>& lost) {
  for (const RankOutcome& outcome : outcomes) {
    if (std::find(lost.begin(), lost.end(), outcome.rank) != lost.end()) continue;
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
  }
}

/// Every kind of collective, in line, small and large, among the ranks that are left.
void exchange_all(Transport& transport) {
  const std::int32_t rank = transport.world().rank;
  const std::int32_t size = transport.world().size;
  constexpr std::int64_t kMost = 300'000;
  const auto collectives = transport.make_collectives(size * kMost, patience());
  collectives->barrier(60s);
  for (const std::int64_t bytes : {std::int64_t{8}, std::int64_t{3'000}, kMost}) {
    const auto count = static_cast<std::size_t>(size * bytes);
    std::vector<std::byte> send(count, static_cast<std::byte>(rank + 1));
    std::vector<std::byte> receive(count, static_cast<std::byte>(255));
    const auto check = [&](const char* what) {
      for (std::int32_t peer = 0; peer < size; ++peer) {
        require(all_are(receive.data() + peer * bytes, bytes, transport.excluded(peer) ? 255 : peer + 1),
                std::string(what) + ": wrong bytes at the place of rank " + std::to_string(peer));
      }
      std::fill(receive.begin(), receive.end(), static_cast<std::byte>(255));
    };
    collectives->allgather(send.data(), bytes, receive.data(), 60s);
    check("allgather");
    collectives->alltoall(send.data(), bytes, receive.data(), 60s);
    check("alltoall");
    std::vector<std::int64_t> offsets;
    std::vector<std::int64_t> sizes;
    for (std::int32_t peer = 0; peer < size; ++peer) {
      offsets.push_back(peer * bytes);
      sizes.push_back(transport.excluded(peer) ? 0 : bytes);
    }
    collectives->alltoallv(send.data(), offsets, sizes, receive.data(), offsets, sizes, 60s);
    check("alltoallv");
  }
}

TEST(TransportMaskTest, GoesOnWithoutAKilledRank) {
  for (const bool put_only : {false, true}) {
    for (const std::int32_t victim : {0, 2, 4}) {
      const auto outcomes = run_ranks({.ranks = 5}, [&](Transport& inner) {
        const auto wrapped = make_delayed(
            inner, {.seed = 5, .probability = put_only ? 0.2 : 0.0, .hide_load_store = put_only});
        Transport& transport = *wrapped;
        auto words = transport.allocate(kSignalStride, "words", patience());
        if (transport.world().rank == victim) std::raise(SIGKILL);
        const std::string message = message_of(Errc::peer_lost, [&] {
          transport.wait_signal(words, 0, 1, patience(), {.phase = "dispatch", .peer = victim});
        });
        require(message.find("lost rank " + std::to_string(victim)) != std::string::npos, message);
        require(transport.capabilities().maskable, "shm is maskable");
        const std::array<std::int32_t, 1> lost{victim};
        transport.exclude(lost);
        require(transport.excluded(victim), "excluded");
        // What a program still sends it does nothing.
        const std::uint64_t value = 3;
        transport.put(words, victim, 0, &value, 8);
        transport.put_signal(words, victim, 0, &value, 8, 8, 3);
        transport.signal(words, victim, 0, 3);
        transport.quiet();
        exchange_all(transport);
        // Its end is nobody's any more: this wait reaches its deadline.
        static_cast<void>(message_of(Errc::timeout, [&] {
          transport.wait_signal(words, 0, 1, Clock::now() + 100ms, {.phase = "combine", .peer = victim});
        }));
        exchange_all(transport);
        return 0;
      });
      EXPECT_EQ(outcomes.at(static_cast<std::size_t>(victim)).signal, SIGKILL);
      expect_survivors_end_well(outcomes, {victim});
      EXPECT_EQ(combined_status(outcomes), 128 + SIGKILL);
    }
  }
}

TEST(TransportMaskTest, ShrinksAgainAndAgain) {
  const SharedWords words;
  const auto outcomes = run_ranks({.ranks = 5}, [&](Transport& transport) {
    for (std::int32_t victim = 0; victim < 4; ++victim) {
      exchange_all(transport);
      // A survivor whose last wait still goes on would hear of the death in it.
      const auto through = static_cast<std::size_t>(8 + victim);
      if (transport.world().rank == victim) {
        words.wait_for(through, 4 - victim);
        words[static_cast<std::size_t>(victim)].store(1);
        std::raise(SIGKILL);
      }
      words[through].fetch_add(1);
      // Else it may be excluded while it is still in the exchange, and end with that error.
      words.wait_for(static_cast<std::size_t>(victim), 1);
      const std::array<std::int32_t, 1> lost{victim};
      transport.exclude(lost);
    }
    exchange_all(transport);
    return 0;
  });
  expect_survivors_end_well(outcomes, {0, 1, 2, 3});
  for (std::size_t rank = 0; rank < 4; ++rank) EXPECT_EQ(outcomes.at(rank).signal, SIGKILL);
}

TEST(TransportMaskTest, GivesMemoryBackWithTheLastSurvivor) {
  const auto outcomes = run_ranks({.ranks = 3}, [](Transport& transport) {
    constexpr std::int64_t kBytes = 8 << 20;
    auto before = transport.allocate(kBytes, "before", patience());
    auto released = transport.allocate(kBytes, "released by the lost rank", patience());
    const auto collectives = transport.make_collectives(8, patience());
    if (transport.world().rank == 0) transport.release(released);
    collectives->barrier(60s);
    if (transport.world().rank == 0) std::raise(SIGKILL);
    const std::array<std::int32_t, 1> lost{0};
    transport.exclude(lost);
    auto after = transport.allocate(kBytes, "after", patience());
    const auto survivors = transport.make_collectives(8, patience());
    const std::int64_t most = file_bytes();
    survivors->barrier(60s);
    transport.release(before);
    transport.release(released);
    survivors->barrier(60s);
    require(file_bytes() <= most - 6 * kBytes, "memory from before the exclusion was not given back");
    survivors->barrier(60s);
    transport.release(after);
    survivors->barrier(60s);
    require(file_bytes() <= most - 8 * kBytes, "memory from after the exclusion was not given back");
    return 0;
  });
  expect_survivors_end_well(outcomes, {0});
}

TEST(TransportMaskTest, RefusesToExcludeItselfOrNobodyKnown) {
  const auto outcomes = run_ranks({.ranks = 2, .mode = RankMode::threads}, [](Transport& transport) {
    const std::array<std::int32_t, 1> itself{transport.world().rank};
    const std::array<std::int32_t, 1> unknown{2};
    require(message_of(Errc::invalid_argument, [&] { transport.exclude(itself); }).find("other ranks from") !=
                std::string::npos,
            "message");
    static_cast<void>(message_of(Errc::invalid_argument, [&] { transport.exclude(unknown); }));
    exchange_all(transport);
    return 0;
  });
  expect_survivors_end_well(outcomes, {});
}

TEST(TransportMaskTest, EndsARankThatTheSurvivorsLeftStopped) {
  const SharedWords words;
  const auto outcomes = run_ranks({.ranks = 3}, [&](Transport& transport) {
    if (transport.world().rank == 1) {
      words[0].store(getpid());
      std::raise(SIGSTOP);
      return 7;
    }
    // As survivors that have agreed whom to exclude, both have left the meeting at the start.
    const std::int32_t rank = transport.world().rank;
    words[static_cast<std::size_t>(1 + rank)].store(1);
    words.wait_for(static_cast<std::size_t>(1 + (rank == 0 ? 2 : 0)), 1);
    wait_for_state(static_cast<pid_t>(words.wait_for(0, 1)), "T");
    const std::array<std::int32_t, 1> lost{1};
    transport.exclude(lost);
    exchange_all(transport);
    return 0;
  });
  expect_survivors_end_well(outcomes, {1});
  EXPECT_EQ(outcomes.at(1).message, "stopped, then killed by signal 9 (Killed)");
}

TEST(TransportMaskTest, WaitsForAStoppedRankThatNobodyExcluded) {
  const SharedWords words;
  const auto outcomes = run_ranks({.ranks = 2}, [&](Transport& transport) {
    if (transport.world().rank == 1) {
      words[0].store(getpid());
      std::raise(SIGSTOP);
      return 0;
    }
    const auto pid = static_cast<pid_t>(words.wait_for(0, 1));
    wait_for_state(pid, "T");
    // Goes on well after this rank has ended.
    if (fork() == 0) {
      usleep(400'000);
      kill(pid, SIGCONT);
      _exit(0);
    }
    return 0;
  });
  expect_survivors_end_well(outcomes, {});
}

/// A rank is stopped at a random moment, also inside an allocation; the others go on, then it does too.
TEST(TransportMaskTest, KeepsNewMemoryFromAResumedRank) {
  Random random(21);
  for (int run = 0; run < 20; ++run) {
    const SharedWords words;
    const auto victim = static_cast<std::int32_t>(random.below(3));
    const auto delay = std::chrono::microseconds(1 + random.below(15'000));
    const auto outcomes = run_ranks({.ranks = 3}, [&](Transport& transport) -> int {
      const std::int32_t rank = transport.world().rank;
      constexpr std::int64_t kBytes = 64 << 10;
      const std::vector<std::byte> noise(kBytes, std::byte{0xee});
      auto old = transport.allocate(kBytes, "old", patience());
      if (rank == victim) {
        words[0].store(getpid());
        strike_after<SIGSTOP>(delay);
        std::vector<SymmetricBuffer> all{old};
        const auto write_everywhere = [&] {
          for (const SymmetricBuffer& buffer : all)
            for (std::int32_t peer = 0; peer < 3; ++peer)
              transport.put(buffer, peer, 0, noise.data(), kBytes);
        };
        try {
          while (true) {
            all.push_back(transport.allocate(kBytes, "one more", patience()));
            write_everywhere();
          }
        } catch (const Error&) {
          write_everywhere();
          words[1].store(1);
          throw;
        }
      }
      try {
        while (true) static_cast<void>(transport.allocate(kBytes, "one more", Clock::now() + 150ms));
      } catch (const Error& error) {
        require(error.code() == Errc::timeout || error.code() == Errc::peer_lost, error.what());
      }
      const auto pid = static_cast<pid_t>(words.wait_for(0, 1));
      wait_for_state(pid, "T");
      const std::array<std::int32_t, 1> lost{victim};
      transport.exclude(lost);
      words[2].fetch_add(1);
      words.wait_for(2, 2);
      std::vector<SymmetricBuffer> fresh;
      for (int buffer = 0; buffer < 6; ++buffer) {
        fresh.push_back(transport.allocate(kBytes, "new", patience()));
        std::memset(fresh.back().local, 1 + rank, kBytes);
      }
      words[3].fetch_add(1);
      words.wait_for(3, 2);
      kill(pid, SIGCONT);
      words.wait_for(1, 1);
      wait_for_state(pid, "ZX");
      require(all_are(old.local, kBytes, 0xee), "the resumed rank's writes to old memory are missing");
      for (const SymmetricBuffer& buffer : fresh)
        require(all_are(buffer.local, kBytes, 1 + rank), "a resumed rank wrote to new memory");
      exchange_all(transport);
      return 0;
    });
    expect_survivors_end_well(outcomes, {victim});
    const RankOutcome& resumed = outcomes.at(static_cast<std::size_t>(victim));
    EXPECT_EQ(resumed.signal, 0);
    EXPECT_EQ(resumed.code, Errc::peer_lost);
    EXPECT_NE(resumed.message.find("excluded: it did not answer, and the others went on without it"),
              std::string::npos)
        << resumed.message;
  }
}

}  // namespace
}  // namespace shunt

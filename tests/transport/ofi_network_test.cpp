// OfiNetwork by itself: forked ranks meet over shared memory, and all that they move goes through libfabric.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>

#include "network_namespace.h"
#include "ofi/ofi_network.h"

namespace shunt::ofi {
namespace {

using namespace std::chrono_literals;

constexpr std::chrono::seconds kPatience{60};

[[nodiscard]] Deadline patience() {
  return Clock::now() + kPatience;
}

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

/// Ranks of one machine meet through the collectives of the shared-memory transport.
class ShmBootstrap : public Bootstrap {
 public:
  explicit ShmBootstrap(Transport& transport)
      : transport_(transport), collectives_(transport.make_collectives(1 << 20, patience())) {}
  [[nodiscard]] std::int32_t rank() const noexcept override { return transport_.world().rank; }
  [[nodiscard]] std::int32_t size() const noexcept override { return transport_.world().size; }
  void allgather(const void* mine, std::int64_t bytes, void* all, Deadline, const char*) override {
    collectives_->allgather(mine, bytes, all, kPatience);
  }
  void barrier() { collectives_->barrier(kPatience); }
  /// A barrier for ranks that must not stop moving on meanwhile.
  void barrier(net::Network& network, std::int32_t* counter) {
    const std::int32_t round = std::atomic_ref(*counter).fetch_add(1) / size();
    const Deadline end = patience();
    while (std::atomic_ref(*counter).load() < (round + 1) * size()) {
      network.progress();
      require(Clock::now() < end, "the other ranks did not come");
      std::this_thread::sleep_for(50us);
    }
  }

 private:
  Transport& transport_;
  std::unique_ptr<Collectives> collectives_;
};

struct Rank {
  Transport& shared;
  ShmBootstrap& bootstrap;
  OfiNetwork& network;
  std::int32_t rank;
  std::int32_t size;
  std::int32_t* counter;  ///< Zero at first, shared by all ranks

  /// Collective. Shared memory, as all symmetric memory is, which outlives the network.
  [[nodiscard]] std::span<std::byte> allocate(std::int64_t bytes) {
    const SymmetricBuffer buffer = shared.allocate(bytes, "memory", patience());
    return {buffer.local, static_cast<std::size_t>(bytes)};
  }
  void meet() { bootstrap.barrier(network, counter); }
  void offer(std::int32_t id, std::byte* base, std::int64_t bytes) {
    const net::MemoryName mine = network.expose(id, base, bytes);
    std::vector<net::MemoryName> all(static_cast<std::size_t>(size));
    bootstrap.allgather(&mine, sizeof mine, all.data(), patience(), "names");
    network.admit(id, all);
  }
  void wait(const std::byte* word, std::uint64_t value) {
    auto* plain = reinterpret_cast<std::uint64_t*>(const_cast<std::byte*>(word));
    const Deadline end = patience();
    while (static_cast<std::int64_t>(std::atomic_ref(*plain).load(std::memory_order_acquire) - value) < 0) {
      network.progress();
      if (network.lost() >= 0) throw Error(Errc::peer_lost, "lost rank " + std::to_string(network.lost()));
      require(Clock::now() < end, "a signal did not come");
      std::this_thread::yield();
    }
  }
};

struct Case {
  std::string name;
  Settings settings;
  RankMode mode = RankMode::processes;
};
void PrintTo(const Case& one, std::ostream* out) {
  *out << one.name;
}

[[nodiscard]] std::vector<Case> cases() {
  const std::string tcp = "tcp;ofi_rxm";
  return {
      {.name = "Tcp", .settings = {.provider = tcp}},
      {.name = "TcpThreads", .settings = {.provider = tcp}, .mode = RankMode::threads},
      {.name = "TcpWords", .settings = {.provider = tcp, .delivery = Delivery::words}},
      {.name = "TcpCounted", .settings = {.provider = tcp, .delivery = Delivery::counted}},
      {.name = "TcpBounced", .settings = {.provider = tcp, .always_bounce = true}},
      {.name = "Shm", .settings = {.provider = "shm"}},
  };
}

class OfiNetworkTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string& reason = testing_support::enter_network_namespace();
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
  static std::vector<RankOutcome> run(std::int32_t ranks, const std::function<void(Rank&)>& body,
                                      std::chrono::milliseconds stall = kPatience) {
    return run_ranks({.ranks = ranks, .mode = GetParam().mode}, [&](Transport& transport) {
      ShmBootstrap bootstrap(transport);
      SymmetricBuffer counter = transport.allocate(8, "counter", patience());
      World world = transport.world();
      for (std::int32_t rank = 0; rank < ranks; ++rank) world.nodes.push_back(rank);
      Settings settings = GetParam().settings;
      settings.stall_deadline = stall;
      OfiNetwork network(bootstrap, world, settings, patience());
      Rank rank{transport,  bootstrap,  network,
                world.rank, world.size, reinterpret_cast<std::int32_t*>(transport.peer_pointer(counter, 0))};
      body(rank);
      return 0;
    });
  }
  static void run_well(std::int32_t ranks, const std::function<void(Rank&)>& body) {
    for (const RankOutcome& outcome : run(ranks, body)) {
      EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
    }
  }
};

[[nodiscard]] std::byte pattern(std::int32_t from, std::int32_t to, std::uint64_t step, std::int64_t at) {
  return static_cast<std::byte>((static_cast<std::uint64_t>(from * 31 + to * 7) + step * 17 +
                                 static_cast<std::uint64_t>(at * 3 + (at >> 8))) %
                                251);
}

/// Words whose bytes all change with each step: half a word would be far too large or too small. Words that
/// are written by RMA are whole on RDMA hardware, but not over sockets.
[[nodiscard]] std::uint64_t word_of(std::uint64_t step, const Case& one) {
  return one.settings.delivery == Delivery::words ? step : step * 0x0000'0101'0101'0101ULL;
}

TEST_P(OfiNetworkTest, ShowsPayloadBeforeItsSignal) {
  run_well(4, [](Rank& self) {
    constexpr std::int64_t kMost = 300'000;
    const std::int64_t stride = 256 + kMost;
    const std::span<std::byte> memory = self.allocate(stride * self.size);
    std::vector<std::byte> source(static_cast<std::size_t>(kMost * self.size));
    self.offer(0, memory.data(), static_cast<std::int64_t>(memory.size()));
    Random common(3);
    const std::array<std::int64_t, 9> odd = {0, 1, 8, 64, 65, 4097, 9001, 65'536, kMost};
    for (std::uint64_t step = 1; step <= 60; ++step) {
      const std::int64_t bytes =
          step % 4 == 0 ? odd[common.below(odd.size())] : static_cast<std::int64_t>(common.below(3000));
      for (std::int32_t peer = 0; peer < self.size; ++peer) {
        if (peer == self.rank) continue;
        std::byte* from = source.data() + kMost * peer;
        for (std::int64_t at = 0; at < bytes; ++at) from[at] = pattern(self.rank, peer, step, at);
        // Two puts and one signal for both.
        self.network.put(peer, 0, stride * self.rank + 256, from, bytes / 2);
        self.network.put_signal(peer, 0, stride * self.rank + 256 + bytes / 2, from + bytes / 2,
                                bytes - bytes / 2, stride * self.rank, word_of(step, GetParam()));
      }
      for (std::int32_t peer = 0; peer < self.size; ++peer) {
        if (peer == self.rank) continue;
        const std::byte* slot = memory.data() + stride * peer;
        self.wait(slot, word_of(step, GetParam()));
        std::uint64_t word = 0;
        std::memcpy(&word, slot, 8);
        require(word == word_of(step, GetParam()),
                "word " + std::to_string(word) + " in step " + std::to_string(step));
        for (std::int64_t at = 0; at < bytes; ++at) {
          require(slot[256 + at] == pattern(peer, self.rank, step, at),
                  "byte " + std::to_string(at) + " of " + std::to_string(bytes) + " from rank " +
                      std::to_string(peer) + " in step " + std::to_string(step));
        }
      }
      self.network.quiet();
      for (std::int32_t peer = 0; peer < self.size; ++peer) {
        if (peer != self.rank) self.network.signal(peer, 0, stride * self.rank + 128, step);
      }
      for (std::int32_t peer = 0; peer < self.size; ++peer) {
        if (peer != self.rank) self.wait(memory.data() + stride * peer + 128, step);
      }
    }
    self.meet();
  });
}

TEST_P(OfiNetworkTest, NeedsNoCallAfterQuiet) {
  run_well(2, [](Rank& self) {
    constexpr std::int64_t kBytes = 8 << 20;
    const std::span<std::byte> memory = self.allocate(kBytes + 256);
    self.offer(7, memory.data(), static_cast<std::int64_t>(memory.size()));
    std::int32_t* received = self.counter + 1;
    if (self.rank == 0) {
      std::vector<std::byte> source(kBytes, std::byte{7});
      self.network.put_signal(1, 7, 256, source.data(), kBytes, 0, 1);
      self.network.quiet();
      std::memset(source.data(), 0, source.size());
      const Deadline end = patience();
      while (std::atomic_ref(*received).load() == 0) {
        require(Clock::now() < end, "rank 1 needed more calls of rank 0");
        std::this_thread::sleep_for(1ms);
      }
    } else {
      std::this_thread::sleep_for(50ms);
      self.wait(memory.data(), 1);
      for (std::int64_t at = 0; at < kBytes; ++at) {
        require(memory[static_cast<std::size_t>(256 + at)] == std::byte{7}, "a byte is missing");
      }
      std::atomic_ref(*received).store(1);
    }
    self.meet();
  });
}

TEST_P(OfiNetworkTest, FenceKeepsTheLaterPut) {
  run_well(2, [](Rank& self) {
    const std::span<std::byte> memory = self.allocate(4096 + 256);
    std::vector<std::byte> sources(2 * 4096);
    self.offer(0, memory.data(), static_cast<std::int64_t>(memory.size()));
    const std::int32_t peer = 1 - self.rank;
    for (std::uint64_t step = 1; step <= 50; ++step) {
      std::fill_n(sources.data(), 4096, std::byte{0xee});
      std::fill_n(sources.data() + 4096, 4096, static_cast<std::byte>(step));
      self.network.put(peer, 0, 256, sources.data(), 4096);
      self.network.fence();
      self.network.put_signal(peer, 0, 256, sources.data() + 4096, 4096, 0, step);
      self.wait(memory.data(), step);
      require(memory[256] == static_cast<std::byte>(step) && memory[4351] == static_cast<std::byte>(step),
              "the earlier put came later");
      self.network.quiet();
      self.network.signal(peer, 0, 128, step);
      self.wait(memory.data() + 128, step);
    }
    self.meet();
  });
}

TEST_P(OfiNetworkTest, LateSignalsDoNotReachNewMemoryOfTheSameNumber) {
  run_well(2, [](Rank& self) {
    SymmetricBuffer before = self.shared.allocate(256, "before", patience());
    SymmetricBuffer after = self.shared.allocate(256, "after", patience());
    self.offer(3, before.local, 256);
    // Towards rank 0, which has withdrawn its memory and does not call until the signal is on its way.
    if (self.rank == 0) self.network.withdraw(3);
    self.bootstrap.barrier();
    if (self.rank == 1) {
      self.network.signal(0, 3, 0, 99);
      self.network.withdraw(3);
    }
    self.meet();
    self.offer(3, after.local, 256);
    self.network.signal(1 - self.rank, 3, 128, 1);
    self.wait(after.local + 128, 1);
    require(after.local[0] == std::byte{0}, "a signal for withdrawn memory reached other memory");
    self.meet();
  });
}

TEST_P(OfiNetworkTest, LatePutsToWithdrawnMemoryDoNoHarm) {
  run_well(3, [](Rank& self) {
    constexpr std::int64_t kBytes = 64 * 1024;
    // Shared, as all symmetric memory is.
    SymmetricBuffer before = self.shared.allocate(kBytes, "before", patience());
    SymmetricBuffer after = self.shared.allocate(kBytes, "after", patience());
    self.offer(1, before.local, kBytes);
    self.offer(2, after.local, kBytes);
    const auto greet = [&](std::uint64_t value) {
      for (std::int32_t peer = 0; peer < self.size; ++peer) {
        if (peer != self.rank) self.network.signal(peer, 2, 128 * self.rank, value);
      }
      for (std::int32_t peer = 0; peer < self.size; ++peer) {
        if (peer != self.rank) self.wait(after.local + 128 * peer, value);
      }
    };
    greet(1);
    if (self.rank == 0) self.network.withdraw(1);
    if (self.rank == 0) self.shared.release(before);
    self.bootstrap.barrier();
    std::vector<std::byte> source(kBytes, std::byte{9});
    if (self.rank != 0) {
      self.network.put_signal(0, 1, 0, source.data(), kBytes - 256, kBytes - 128, 5);
      self.network.put_signal(0, 2, 1024, source.data(), 4096, 128 * self.rank, 2);
      self.network.quiet();
      self.network.withdraw(1);
    } else {
      for (std::int32_t peer = 1; peer < self.size; ++peer) self.wait(after.local + 128 * peer, 2);
      require(after.local[1024] == std::byte{9}, "what came after the late put is missing");
    }
    self.meet();
    greet(3);
    self.network.quiet();
    self.meet();
  });
}

TEST_P(OfiNetworkTest, NamesAPeerThatTakesNothing) {
  if (GetParam().settings.provider == "shm") GTEST_SKIP() << "the shm provider writes without the peer";
  const auto outcomes = run(
      2,
      [](Rank& self) {
        const std::span<std::byte> memory = self.allocate(1 << 20);
        self.offer(0, memory.data(), 1 << 20);
        std::int32_t* done = self.counter + 1;
        if (self.rank == 1) {
          const Deadline end = patience();
          while (std::atomic_ref(*done).load() == 0) {
            require(Clock::now() < end, "rank 0 did not give up");
            std::this_thread::sleep_for(1ms);
          }
          return;
        }
        std::string message = "nothing was thrown";
        try {
          for (int turn = 0; turn < 200; ++turn) self.network.put(1, 0, 0, memory.data(), 1 << 20);
          self.network.quiet();
        } catch (const Error& error) {
          message = error.what();
          require(error.code() == Errc::timeout && error.peer() == 1, message);
        }
        std::atomic_ref(*done).store(1);
        require(message.find("rank 0: timed out after ") == 0 &&
                    message.find(" ms waiting for rank 1 in put") != std::string::npos,
                message);
      },
      300ms);
  for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
}

TEST_P(OfiNetworkTest, WaitsForRoomNoLongerThanItMayAndGoesOn) {
  if (GetParam().settings.provider == "shm") GTEST_SKIP() << "the shm provider writes without the peer";
  run_well(2, [](Rank& self) {
    constexpr std::int64_t kBytes = 1 << 16;
    const std::span<std::byte> memory = self.allocate(2 * kBytes);
    self.offer(0, memory.data(), 2 * kBytes);
    std::int32_t* go_on = self.counter + 1;
    if (self.rank == 1) {
      const Deadline end = patience();
      while (std::atomic_ref(*go_on).load() == 0) {
        require(Clock::now() < end, "rank 0 did not go on");
        std::this_thread::sleep_for(1ms);
      }
      self.wait(memory.data() + kBytes, 1);
      return;
    }
    struct Asked final : WaitBreaker {
      bool breaks_waits() override { return true; }
    } asked;
    const auto put_until = [&](Errc code, std::int32_t peer) {
      for (int turn = 0; turn < 20'000; ++turn) {
        try {
          self.network.put(1, 0, 0, memory.data(), kBytes);
        } catch (const Error& error) {
          require(error.code() == code && error.peer() == peer, error.what());
          return true;
        }
      }
      return false;
    };
    // The stall deadline is far: only these end the waits.
    self.network.end_waits_at(Deadline::min());
    const bool full = put_until(Errc::timeout, 1);
    self.network.end_waits_at(Deadline::max());
    self.network.set_wait_breaker(&asked);
    const bool broken = full && put_until(Errc::peer_lost, -1);
    self.network.set_wait_breaker(nullptr);
    // Nothing of it has harmed the connection.
    std::atomic_ref(*go_on).store(1);
    self.network.put_signal(1, 0, 0, memory.data(), 8, kBytes, 1);
    self.network.quiet();
    require(full, "there was room for everything");
    require(broken, "a wait did not end when it was asked to");
  });
}

TEST_P(OfiNetworkTest, PaysForAPeerThatTakesNothingOnce) {
  if (GetParam().settings.provider == "shm") GTEST_SKIP() << "the shm provider writes without the peer";
  if (GetParam().settings.delivery == Delivery::words) GTEST_SKIP() << "its signals are puts";
  const auto outcomes = run(
      2,
      [](Rank& self) {
        const std::span<std::byte> memory = self.allocate(1 << 20);
        self.offer(0, memory.data(), 1 << 20);
        std::int32_t* done = self.counter + 1;
        if (self.rank == 1) {
          const Deadline end = patience();
          while (std::atomic_ref(*done).load() == 0) {
            require(Clock::now() < end, "rank 0 did not give up");
            std::this_thread::sleep_for(1ms);
          }
          return;
        }
        // Each call by itself would wait for the stall deadline, which makes 50 minutes of them.
        const auto start = Clock::now();
        int timeouts = 0;
        for (int turn = 0; turn < 20'000 && timeouts < 1000; ++turn) {
          try {
            self.network.signal(1, 0, 0, 1);
          } catch (const Error& error) {
            ++timeouts;
          }
        }
        const auto first = Clock::now();
        // Leaving ends with its bound even where the stall deadline has just begun.
        self.network.end_waits_at(first + 100ms);
        try {
          for (int turn = 0; turn < 200; ++turn) self.network.put(1, 0, 0, memory.data(), 1 << 20);
          self.network.quiet();
        } catch (const Error&) {
          ++timeouts;
        }
        const auto second = Clock::now();
        std::atomic_ref(*done).store(1);
        require(timeouts > 0, "rank 1 took everything");
        require(first - start < 40s, "the stall deadline was waited for again and again");
        require(second - first < 20s, "a put waited beyond the end of waits");
      },
      3000ms);
  for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
}

TEST_P(OfiNetworkTest, LeavesAPeerThatEndedAlone) {
  run_well(3, [](Rank& self) {
    const std::span<std::byte> memory = self.allocate(4096);
    self.offer(0, memory.data(), 4096);
    for (std::int32_t peer = 0; peer < self.size; ++peer) {
      if (peer != self.rank) self.network.signal(peer, 0, 128 * self.rank, 1);
    }
    self.network.quiet();
    if (self.rank == 0) return;
    // Rank 0 has ended or is about to; what it said still counts, and what is put to it is no error.
    std::this_thread::sleep_for(30ms);
    for (std::int32_t peer = 0; peer < self.size; ++peer) {
      if (peer != self.rank) self.wait(memory.data() + 128 * peer, 1);
    }
    std::this_thread::sleep_for(20ms);
    const std::array<std::byte, 2048> source{};
    for (int turn = 0; turn < 20; ++turn) self.network.put_signal(0, 0, 2048, source.data(), 2048, 1024, 1);
    self.network.signal(3 - self.rank, 0, 512, 1);
    self.network.quiet();
    self.wait(memory.data() + 512, 1);
  });
}

TEST_P(OfiNetworkTest, NamesAKilledPeerAndGoesOnWithoutIt) {
  if (GetParam().mode == RankMode::threads) GTEST_SKIP() << "needs a process to kill";
  // A killed rank of the shm provider leaves its file in /dev/shm.
  if (GetParam().settings.provider == "shm") GTEST_SKIP() << "the shm provider tells nothing of its peers";
  const auto outcomes = run(
      3,
      [](Rank& self) {
        const std::span<std::byte> memory = self.allocate(1 << 20);
        self.offer(0, memory.data(), 1 << 20);
        for (std::int32_t peer = 0; peer < self.size; ++peer) {
          if (peer != self.rank) self.network.signal(peer, 0, 128 * self.rank, 1);
        }
        for (std::int32_t peer = 0; peer < self.size; ++peer) {
          if (peer != self.rank) self.wait(memory.data() + 128 * peer, 1);
        }
        if (self.rank == 2) kill(getpid(), SIGKILL);
        std::string message = "nothing was thrown";
        try {
          while (true) {
            self.network.put(2, 0, 4096, memory.data(), 65'536);
            self.network.quiet();
          }
        } catch (const Error& error) {
          message = error.what();
          require(error.peer() == 2, message + ": peer() is " + std::to_string(error.peer()));
        }
        require(message.find("rank " + std::to_string(self.rank) + ": ") == 0 &&
                    message.find("rank 2") != std::string::npos,
                message);
        const std::array<std::int32_t, 1> gone = {2};
        self.network.exclude(gone);
        require(self.network.lost() < 0, "an excluded rank is still reported");
        self.network.put(2, 0, 4096, memory.data(), 65'536);
        self.network.signal(1 - self.rank, 0, 512, 1);
        self.wait(memory.data() + 512, 1);
        self.network.quiet();
      },
      2000ms);
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.rank == 2) {
      EXPECT_EQ(outcome.signal, SIGKILL);
    } else {
      EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Providers, OfiNetworkTest, testing::ValuesIn(cases()),
                         [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace shunt::ofi

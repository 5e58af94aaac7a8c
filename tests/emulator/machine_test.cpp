#include "emulator/machine.h"

#include <gtest/gtest.h>

#include <array>
#include <set>
#include <vector>

#include "emulator/context.h"

namespace shunt::emulator {
namespace {

using device::Scope;

constexpr std::uint64_t kSeeds = 40;

TEST(MachineTest, WarpOperationsGiveEveryLaneItsResult) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Machine machine({.seed = seed});
    std::array<std::array<std::int64_t, 64>, 5> seen{};
    machine.launch(0, "warps", {1, 64, 0}, [&](Context& c) {
      const auto i = static_cast<std::size_t>(c.thread());
      seen[0][i] = c.shuffle(std::int64_t{100} + c.lane(), (c.lane() + 5) % 32);
      seen[1][i] = c.shuffle_xor(c.lane(), 3);
      seen[2][i] = c.shuffle_up(c.lane(), 2);
      seen[3][i] = c.ballot(c.lane() % 3 == 0 || c.warp() == 1);
      seen[4][i] = c.match_any(c.lane() / 10);
    });
    machine.run();
    for (std::int64_t thread = 0; thread < 64; ++thread) {
      const auto i = static_cast<std::size_t>(thread);
      const std::int64_t lane = thread % 32;
      ASSERT_EQ(seen[0][i], 100 + (lane + 5) % 32);
      ASSERT_EQ(seen[1][i], lane ^ 3);
      ASSERT_EQ(seen[2][i], lane < 2 ? lane : lane - 2);
      ASSERT_EQ(seen[3][i], thread < 32 ? 0x49249249 : 0xffffffff);
      const std::int64_t group = lane / 10;
      ASSERT_EQ(seen[4][i], group == 3 ? 0xc0000000 : std::int64_t{0x3ff} << (10 * group));
    }
  }
}

TEST(MachineTest, ABlockSumsItsThreadsThroughSharedMemory) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Machine machine({.seed = seed, .processors = 3});
    std::vector<std::int32_t> sums(7);
    machine.launch(0, "sum", {7, 96, 96 * 4}, [&](Context& c) {
      auto values = c.shared<std::int32_t>(0, 96);
      values.store(c.thread(), c.thread() + c.block());
      c.sync_block();
      for (std::int32_t half = 48; half >= 3; half /= 2) {
        if (c.thread() < half)
          values.store(c.thread(), values.load(c.thread()) + values.load(c.thread() + half));
        c.sync_block();
      }
      if (c.thread() == 0)
        sums[static_cast<std::size_t>(c.block())] = values.load(0) + values.load(1) + values.load(2);
    });
    machine.run();
    for (std::int32_t block = 0; block < 7; ++block)
      ASSERT_EQ(sums[static_cast<std::size_t>(block)], 95 * 96 / 2 + 96 * block);
  }
}

TEST(MachineTest, BlocksShareAtomics) {
  Machine machine({.seed = 3});
  std::uint64_t wide = 0;
  std::uint32_t narrow = 0;
  std::uint64_t locked = 0;
  std::uint64_t lock = 0;
  machine.launch(0, "add", {9, 64, 0}, [&](Context& c) {
    c.fetch_add(Scope::device, &wide, 3);
    c.fetch_add(Scope::system, &narrow, 1);
    while (c.compare_exchange(Scope::device, &lock, 0, 1) != 0) c.pause();
    const std::uint64_t old = c.load_relaxed(Scope::device, &locked);
    c.store_relaxed(Scope::device, &locked, old + 1);
    c.store_release(Scope::device, &lock, 0);
  });
  machine.run();
  EXPECT_EQ(wide, 9U * 64 * 3);
  EXPECT_EQ(narrow, 9U * 64);
  EXPECT_EQ(locked, 9U * 64);
}

/// One rank's memory in the exchange below, which peers write.
struct Mailbox {
  std::array<device::Word16, 4> from{};
  std::array<std::uint64_t, 4> flags{};
};

/// Every rank writes 16 bytes into the memory of every other and raises a flag there; then it waits for its own flags, not
/// longer than `deadline_ns`. Returns per rank the sum of what arrived, or -1 - peer for the first that did not.
std::vector<std::int64_t> exchange(Machine& machine, std::int32_t ranks, std::int32_t silent,
                                   std::uint64_t deadline_ns) {
  std::vector<Mailbox> boxes(static_cast<std::size_t>(ranks));
  std::vector<std::int64_t> results(static_cast<std::size_t>(ranks), 0);
  for (std::int32_t rank = 0; rank < ranks; ++rank) {
    if (rank == silent) continue;
    machine.launch(rank, "exchange", {1, 32, 0}, [&, rank, ranks, deadline_ns](Context& c) {
      const std::int32_t peer = c.lane();
      const auto me = static_cast<std::size_t>(rank);
      std::int64_t got = 0;
      if (peer < ranks) {
        Mailbox& theirs = boxes[static_cast<std::size_t>(peer)];
        const auto value = static_cast<std::uint32_t>(10 * rank + peer);
        c.store16(&theirs.from[me], {{value, value, value, value}});
        c.store_release(Scope::system, &theirs.flags[me], 1);
        const std::uint64_t start = c.clock_ns();
        const auto at = static_cast<std::size_t>(peer);
        while (c.load_acquire(Scope::system, &boxes[me].flags[at]) == 0 && got == 0) {
          if (c.clock_ns() - start > deadline_ns) got = -1 - peer;
          c.pause();
        }
        if (got == 0) got = c.load16(&boxes[me].from[at]).word[3];
      }
      for (std::int32_t i = 0; i < ranks; ++i) {
        const std::int64_t one = c.shuffle(got, i);
        if (c.lane() != 0 || results[me] < 0) continue;
        results[me] = one < 0 ? one : results[me] + one;
      }
    });
  }
  machine.run();
  return results;
}

TEST(MachineTest, RanksWriteEachOthersMemoryAndWaitForFlags) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Machine machine({.seed = seed}, 4);
    const auto results = exchange(machine, 4, -1, 1'000'000'000);
    for (std::int64_t rank = 0; rank < 4; ++rank)
      ASSERT_EQ(results[static_cast<std::size_t>(rank)], 60 + 4 * rank) << "seed " << seed;
  }
}

TEST(MachineTest, ADeadlineEndsTheWaitForARankThatNeverComes) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    Machine machine({.seed = seed}, 3);
    const auto results = exchange(machine, 3, 1, 200'000);
    EXPECT_EQ(results[0], -2);
    EXPECT_EQ(results[2], -2);
  }
}

TEST(MachineTest, KernelsOfOneRankRunInOrder) {
  for (std::uint64_t seed = 0; seed < kSeeds; ++seed) {
    Machine machine({.seed = seed}, 2);
    std::array<std::vector<int>, 2> order;
    for (int kernel = 0; kernel < 4; ++kernel)
      for (std::int32_t rank = 0; rank < 2; ++rank)
        machine.launch(rank, "step", {3, 32, 0}, [&order, rank, kernel](Context& c) {
          c.pause();
          if (c.thread() == 7) order[static_cast<std::size_t>(rank)].push_back(kernel);
        });
    machine.run();
    for (const auto& seen : order) ASSERT_EQ(seen, (std::vector<int>{0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3}));
  }
}

TEST(MachineTest, OneSeedIsOneScheduleAndSeedsDiffer) {
  const auto schedule = [](std::uint64_t seed) {
    Machine machine({.seed = seed});
    std::vector<std::int32_t> order;
    machine.launch(0, "order", {4, 32, 0}, [&](Context& c) {
      c.pause();
      order.push_back(c.block() * 32 + c.thread());
    });
    machine.run();
    return order;
  };
  std::set<std::vector<std::int32_t>> all;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const auto order = schedule(seed);
    EXPECT_EQ(order, schedule(seed));
    all.insert(order);
  }
  EXPECT_EQ(all.size(), 10U);
}

TEST(MachineTest, NotMoreBlocksRunThanThereAreProcessors) {
  Machine machine({.seed = 5, .processors = 2});
  int running = 0;
  int most = 0;
  machine.launch(0, "blocks", {6, 32, 0}, [&](Context& c) {
    if (c.thread() == 0) most = std::max(most, ++running);
    c.sync_block();
    c.pause();
    c.sync_block();
    if (c.thread() == 0) --running;
  });
  machine.run();
  EXPECT_EQ(most, 2);
}

}  // namespace
}  // namespace shunt::emulator

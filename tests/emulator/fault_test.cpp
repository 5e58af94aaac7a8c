// Kernels that are wrong, and what the emulator says of each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "emulator/context.h"
#include "emulator/machine.h"

namespace shunt::emulator {
namespace {

using device::Scope;
using ::testing::AllOf;
using ::testing::HasSubstr;

/// What running `kernel` raises, with every of some seeds the same kind; empty where it runs through.
std::string fault_of(const LaunchShape& shape, const std::function<void(Context&)>& kernel,
                     MachineOptions options = {}) {
  std::string text;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    options.seed = seed;
    Machine machine(options);
    try {
      machine.launch(0, "wrong", shape, kernel);
      machine.run();
    } catch (const Fault& fault) {
      text = fault.what();
      continue;
    }
    if (seed > 0 && !text.empty())
      return "seed " + std::to_string(seed) + " ran through, others not: " + text;
  }
  return text;
}

TEST(FaultTest, AThreadEndsWhileOthersAreAtTheBarrier) {
  const std::string text = fault_of({2, 64, 0}, [](Context& c) {
    if (c.thread() == 40) return;
    c.sync_block();
  });
  EXPECT_THAT(text, AllOf(HasSubstr("wrong, rank 0, block"), HasSubstr("sync_block at fault_test.cpp:"),
                          HasSubstr("ended")));
}

TEST(FaultTest, ThreadsAreAtDifferentBarriers) {
  const std::string text = fault_of({1, 64, 0}, [](Context& c) {
    if (c.warp() == 0)
      c.sync_block();
    else
      c.sync_block();
  });
  EXPECT_THAT(text, AllOf(HasSubstr("is in sync_block at"), HasSubstr("are in the one at")));
}

TEST(FaultTest, LanesAreInDifferentOperations) {
  const std::string text = fault_of({1, 32, 0}, [](Context& c) {
    if (c.lane() < 9)
      c.ballot(true);
    else
      c.sync_warp();
  });
  EXPECT_THAT(text, AllOf(HasSubstr("ballot"), HasSubstr("sync_warp"), HasSubstr("other lanes of its warp")));
}

TEST(FaultTest, ALaneEndsWhileOthersExchange) {
  const std::string text = fault_of({1, 64, 0}, [](Context& c) {
    if (c.thread() == 63) return;
    c.shuffle(1, 0);
  });
  EXPECT_THAT(text, AllOf(HasSubstr("shuffle at"), HasSubstr("ended")));
}

TEST(FaultTest, EveryThreadWaitsForAnother) {
  const std::string text = fault_of({1, 64, 0}, [](Context& c) {
    if (c.warp() == 1 || c.lane() == 3)
      c.sync_block();
    else
      c.sync_warp();
  });
  EXPECT_THAT(text, AllOf(HasSubstr("deadlock"),
                          HasSubstr("wrong of rank 0, block 0, warp 0: 31 of 32 lanes in sync_warp"),
                          HasSubstr("33 of 64 threads in sync_block")));
}

TEST(FaultTest, ALoopThatWaitsForEver) {
  const std::uint64_t flag = 0;
  const std::string text = fault_of({1, 32, 0},
                                    [&](Context& c) {
                                      while (c.load_acquire(Scope::system, &flag) == 0) c.pause();
                                    },
                                    {.max_idle_steps = 5000});
  EXPECT_THAT(text, AllOf(HasSubstr("5000 steps"), HasSubstr("waits for ever")));
}

TEST(FaultTest, ABlockWaitsForOneThatCannotStart) {
  // On a device with room for one block the second starts when the first has ended.
  std::uint64_t flag = 0;
  const auto kernel = [&](Context& c) {
    c.fetch_add(Scope::device, &flag, 1);
    while (c.load_acquire(Scope::device, &flag) % 64 != 0) c.pause();
  };
  EXPECT_THAT(fault_of({2, 32, 0}, kernel, {.processors = 1, .max_idle_steps = 5000}),
              HasSubstr("waits for ever"));
  flag = 0;
  EXPECT_EQ(fault_of({2, 32, 0}, kernel, {.processors = 2, .max_idle_steps = 50000}), "");
}

TEST(FaultTest, SharedMemoryIsLeft) {
  const auto write = [](std::int32_t offset, std::int32_t count, std::int32_t i) {
    return fault_of({1, 32, 64}, [=](Context& c) {
      if (c.thread() == 5) c.shared<std::int32_t>(offset, count).store(i, 1);
    });
  };
  EXPECT_EQ(write(0, 16, 15), "");
  EXPECT_THAT(write(0, 16, 16),
              AllOf(HasSubstr("thread 5 writes element 16"), HasSubstr("64 bytes of shared memory")));
  EXPECT_THAT(write(0, 16, -1), HasSubstr("writes element -1"));
  EXPECT_THAT(write(32, 16, 8), HasSubstr("offset 32"));
  EXPECT_THAT(write(2, 4, 0), HasSubstr("offset 2"));
}

TEST(FaultTest, SharedMemoryIsReadThatNobodyWrote) {
  const std::string text = fault_of({1, 32, 128}, [](Context& c) {
    auto values = c.shared<float>(0, 32);
    if (c.lane() != 9) values.store(c.lane(), 1.0F);
    c.sync_warp();
    static_cast<void>(values.load(31 - c.lane()));
  });
  EXPECT_THAT(text, HasSubstr("which nobody has written"));
}

TEST(FaultTest, SharedMemoryIsReadBeforeTheBarrier) {
  const auto neighbour = [](bool barrier) {
    return fault_of({1, 64, 256}, [=](Context& c) {
      auto values = c.shared<std::int32_t>(0, 64);
      values.store(c.thread(), c.thread());
      c.sync_block();
      const std::int32_t value = values.load((c.thread() + 1) % 64);
      if (barrier) c.sync_block();
      values.store(c.thread(), value);
    });
  };
  EXPECT_EQ(neighbour(true), "");
  EXPECT_THAT(neighbour(false), AllOf(HasSubstr("shared memory"), HasSubstr("with no barrier between them")));
}

TEST(FaultTest, AWarpIsOrderedByItsOwnOperationAndOthersAreNot) {
  const auto exchange = [](std::int32_t distance, bool by_sync) {
    return fault_of({1, 64, 256}, [=](Context& c) {
      auto values = c.shared<std::int32_t>(0, 64);
      values.store(c.thread(), c.thread());
      if (by_sync)
        c.sync_warp();
      else
        c.ballot(true);  // exchanges registers and orders no memory
      static_cast<void>(values.load(c.thread() ^ distance));
    });
  };
  EXPECT_EQ(exchange(5, true), "");
  EXPECT_THAT(exchange(5, false), HasSubstr("with no barrier between them"));
  EXPECT_THAT(exchange(32, true), ::testing::AnyOf(HasSubstr("no barrier"), HasSubstr("nobody has written")));
}

TEST(FaultTest, TwoThreadsWriteOnePlace) {
  const std::string text = fault_of({1, 32, 4}, [](Context& c) {
    if (c.lane() < 2) c.shared<std::int32_t>(0, 1).store(0, 7);
  });
  EXPECT_THAT(text, HasSubstr("has written with no barrier between them"));
}

TEST(FaultTest, SixteenBytesAreNotAligned) {
  alignas(16) unsigned char memory[64] = {};
  EXPECT_THAT(fault_of({1, 32, 0}, [&](Context& c) { c.load16(memory + 8); }), HasSubstr("loads 16 bytes"));
  EXPECT_THAT(fault_of({1, 32, 0}, [&](Context& c) { c.store16_once(memory + 4, {}); }),
              HasSubstr("stores 16 bytes"));
}

TEST(FaultTest, ABlockIsNoNumberOfWarps) {
  EXPECT_THAT(fault_of({1, 40, 0}, [](Context&) {}), HasSubstr("a multiple of 32"));
  EXPECT_THAT(fault_of({0, 32, 0}, [](Context&) {}), HasSubstr("0 blocks"));
}

}  // namespace
}  // namespace shunt::emulator

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

namespace shunt {
namespace {

using namespace std::chrono_literals;

/// Runs `body` on the only rank of a world, in this thread's process, so that assertions count.
void alone(const std::function<void(Transport&)>& body) {
  const auto outcomes = run_ranks({.ranks = 1, .mode = RankMode::threads}, [&](Transport& transport) {
    body(transport);
    return 0;
  });
  EXPECT_EQ(outcomes.at(0).exit_status, 0) << outcomes.at(0).message;
}

[[nodiscard]] Deadline soon() {
  return Clock::now() + 30s;
}

[[nodiscard]] std::uint64_t word(const SymmetricBuffer& buffer, std::int64_t index) {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(buffer.local + index * kSignalStride)).load();
}

/// Never due by itself, so that what is held shows.
[[nodiscard]] DelayOptions hold_all() {
  return {.seed = 3, .max_delay = std::chrono::microseconds(3'600'000'000), .probability = 1.0};
}

TEST(DelayedTest, HoldsOperationsBackUntilQuiet) {
  alone([](Transport& inner) {
    const auto delayed = make_delayed(inner, hold_all());
    auto buffer = delayed->allocate(4 * kSignalStride, "words", soon());
    std::uint64_t value = 7;
    delayed->put(buffer, 0, 0, &value, 8);
    delayed->put_signal(buffer, 0, kSignalStride, &value, 8, 2 * kSignalStride, 5);
    delayed->signal(buffer, 0, 3 * kSignalStride, 6);
    // Held payload is a copy.
    value = 8;
    for (std::int64_t index = 0; index < 4; ++index) EXPECT_EQ(word(buffer, index), 0U);
    delayed->quiet();
    EXPECT_EQ(word(buffer, 0), 7U);
    EXPECT_EQ(word(buffer, 1), 7U);
    EXPECT_EQ(word(buffer, 2), 5U);
    EXPECT_EQ(word(buffer, 3), 6U);
    delayed->release(buffer);
  });
}

TEST(DelayedTest, CarriesOutHeldOperationsInTheDestructor) {
  alone([](Transport& inner) {
    auto buffer = inner.allocate(kSignalStride, "words", soon());
    {
      const auto delayed = make_delayed(inner, hold_all());
      delayed->signal(buffer, 0, 0, 9);
      EXPECT_EQ(word(buffer, 0), 0U);
    }
    EXPECT_EQ(word(buffer, 0), 9U);
    inner.release(buffer);
  });
}

TEST(DelayedTest, PassesOperationsAtOnceWithProbabilityZero) {
  alone([](Transport& inner) {
    const auto delayed = make_delayed(inner, {.probability = 0.0});
    auto buffer = delayed->allocate(kSignalStride, "words", soon());
    delayed->signal(buffer, 0, 0, 9);
    EXPECT_EQ(word(buffer, 0), 9U);
    delayed->release(buffer);
  });
}

/// How often the second of two put_signals arrived while the first had not, in 400 tries.
[[nodiscard]] int overtakings(Transport& inner, bool reorder, std::uint64_t seed) {
  const auto delayed =
      make_delayed(inner, {.seed = seed, .max_delay = 20us, .probability = 0.5, .reorder = reorder});
  auto buffer = delayed->allocate(4 * kSignalStride, "words", soon());
  int count = 0;
  for (std::uint64_t step = 1; step <= 400; ++step) {
    delayed->put_signal(buffer, 0, 2 * kSignalStride, &step, 8, 0, step);
    delayed->put_signal(buffer, 0, 3 * kSignalStride, &step, 8, kSignalStride, step);
    delayed->wait_signal(buffer, kSignalStride, step, soon(), {.phase = "test", .peer = 0});
    EXPECT_EQ(word(buffer, 3), step);
    if (word(buffer, 0) < step) ++count;
    delayed->quiet();
  }
  delayed->release(buffer);
  return count;
}

TEST(DelayedTest, LetsPutSignalsOvertakeOnlyWithReorder) {
  alone([](Transport& inner) {
    EXPECT_GT(overtakings(inner, true, 1), 0);
    EXPECT_EQ(overtakings(inner, false, 1), 0);
  });
}

TEST(DelayedTest, LetsPutsOvertakeOnlyBetweenFences) {
  alone([](Transport& inner) {
    const auto delayed = make_delayed(inner, {.seed = 5, .max_delay = 20us, .probability = 0.5});
    auto buffer = delayed->allocate(kSignalStride, "words", soon());
    int overtaken = 0;
    for (std::uint64_t step = 1; step <= 400; ++step) {
      const std::uint64_t first = 2 * step;
      const std::uint64_t second = 2 * step + 1;
      delayed->put(buffer, 0, 0, &first, 8);
      delayed->put(buffer, 0, 0, &second, 8);
      delayed->fence();
      delayed->signal(buffer, 0, 64, step);
      delayed->wait_signal(buffer, 64, step, soon(), {.phase = "test", .peer = 0});
      if (word(buffer, 0) == first) ++overtaken;
      delayed->put(buffer, 0, 0, &first, 8);
      delayed->fence();
      delayed->put(buffer, 0, 0, &second, 8);
      delayed->quiet();
      EXPECT_EQ(word(buffer, 0), second);
    }
    EXPECT_GT(overtaken, 0);
    delayed->release(buffer);
  });
}

TEST(DelayedTest, NeverTurnsASignalWordBack) {
  alone([](Transport& inner) {
    const auto delayed = make_delayed(inner, {.seed = 9, .max_delay = 20us, .probability = 0.5});
    auto buffer = delayed->allocate(2 * kSignalStride, "words", soon());
    std::uint64_t last = 0;
    for (std::uint64_t step = 1; step <= 2000; ++step) {
      if (step % 2 == 0) {
        delayed->signal(buffer, 0, 0, step);
      } else {
        delayed->put_signal(buffer, 0, kSignalStride, &step, 8, 0, step);
      }
      const std::uint64_t now = word(buffer, 0);
      EXPECT_GE(now, last);
      last = now;
    }
    delayed->quiet();
    EXPECT_EQ(word(buffer, 0), 2000U);
    delayed->release(buffer);
  });
}

TEST(DelayedTest, SaysWhatItTakesAway) {
  const auto outcomes = run_ranks({.ranks = 2, .mode = RankMode::threads}, [](Transport& inner) {
    auto buffer = inner.allocate(64, "words", soon());
    const std::int32_t rank = inner.world().rank;
    const auto reordered = make_delayed(inner, {});
    EXPECT_FALSE(reordered->capabilities().ordered);
    EXPECT_TRUE(reordered->capabilities().load_store);
    EXPECT_EQ(reordered->peer_pointer(buffer, 1 - rank), inner.peer_pointer(buffer, 1 - rank));
    const auto hidden = make_delayed(inner, {.reorder = false, .hide_load_store = true});
    EXPECT_TRUE(hidden->capabilities().ordered);
    EXPECT_FALSE(hidden->capabilities().load_store);
    EXPECT_EQ(hidden->peer_pointer(buffer, 1 - rank), nullptr);
    EXPECT_EQ(hidden->peer_pointer(buffer, rank), buffer.local);
    EXPECT_EQ(hidden->name(), "shm");
    return 0;
  });
  EXPECT_EQ(combined_status(outcomes), 0);
}

}  // namespace
}  // namespace shunt

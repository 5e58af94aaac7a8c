#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

namespace shunt {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t kBytes = 64;
constexpr std::byte kOld{0x55};
constexpr std::byte kNew{0xa3};

[[nodiscard]] Deadline soon() {
  return Clock::now() + 60s;
}

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

/// Rank 0 of two puts through a faulty transport; rank 1 lives until it has.
void as_rank_0_of_2(const std::function<void(Transport&)>& body) {
  const auto outcomes = run_ranks({.ranks = 2, .mode = RankMode::threads}, [&](Transport& transport) {
    auto word = transport.allocate(kSignalStride, "end", soon());
    if (transport.world().rank == 0) {
      body(transport);
      transport.signal(word, 1, 0, 1);
    } else {
      // Its part of the buffers that the body allocates.
      auto buffer = transport.allocate(2 * kBytes + kSignalStride, "target", soon());
      transport.wait_signal(word, 0, 1, soon(), {.phase = "test", .peer = 0});
      transport.release(buffer);
    }
    return 0;
  });
  for (const RankOutcome& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

struct Arrival {
  std::int64_t flipped_bits = 0;
  std::int64_t missing_bytes = 0;  ///< At the end
  bool operator==(const Arrival&) const = default;
};

/// What `count` operations become.
[[nodiscard]] std::vector<Arrival> send(const FaultOptions& options, int count, bool with_signal = true,
                                        bool delayed = false) {
  std::vector<Arrival> arrivals;
  as_rank_0_of_2([&](Transport& inner) {
    auto buffer = inner.allocate(2 * kBytes + kSignalStride, "target", soon());
    const auto late = make_delayed(inner, {.seed = 3, .probability = delayed ? 0.5 : 0.0});
    const auto faulty = make_faulty(*late, options);
    std::byte* target = inner.peer_pointer(buffer, 1);
    const std::vector<std::byte> payload(kBytes, kNew);
    std::int64_t damaged = 0;
    for (int operation = 0; operation < count; ++operation) {
      std::memset(target, static_cast<int>(kOld), 2 * kBytes);
      const auto value = static_cast<std::uint64_t>(operation) + 1;
      if (with_signal) {
        faulty->put_signal(buffer, 1, 0, payload.data(), kBytes, 2 * kBytes, value);
      } else {
        faulty->put(buffer, 1, 0, payload.data(), kBytes);
      }
      faulty->quiet();
      if (with_signal) {
        std::uint64_t word = 0;
        std::memcpy(&word, target + 2 * kBytes, sizeof word);
        require(word == value, "the signal did not arrive unharmed");
      }
      Arrival arrival;
      std::int64_t end = kBytes;
      while (end > 0 && target[end - 1] == kOld) --end;
      arrival.missing_bytes = kBytes - end;
      for (std::int64_t at = 0; at < end; ++at)
        arrival.flipped_bits += __builtin_popcount(static_cast<unsigned>(target[at] ^ kNew));
      for (std::int64_t at = kBytes; at < 2 * kBytes; ++at)
        require(target[at] == kOld, "bytes behind the target were written");
      if (!(arrival == Arrival{})) ++damaged;
      require(faulty->damaged() == damaged,
              "damaged() is " + std::to_string(faulty->damaged()) + ", seen " + std::to_string(damaged));
      arrivals.push_back(arrival);
    }
    require(std::all_of(payload.begin(), payload.end(), [](std::byte b) { return b == kNew; }),
            "the caller's bytes were changed");
  });
  return arrivals;
}

TEST(FaultyTest, FlipsOneBitAtTheGivenRate) {
  for (const bool with_signal : {false, true}) {
    const auto arrivals = send({.seed = 7, .flip_probability = 0.2}, 4000, with_signal);
    ASSERT_EQ(arrivals.size(), 4000U);
    int flips = 0;
    for (const Arrival& arrival : arrivals) {
      EXPECT_EQ(arrival.missing_bytes, 0);
      EXPECT_LE(arrival.flipped_bits, 1);
      flips += arrival.flipped_bits == 1 ? 1 : 0;
    }
    // 5 standard deviations of 25.3.
    EXPECT_NEAR(flips, 800, 127);
  }
}

TEST(FaultyTest, LeavesTheOldBytesAtTheEndAtTheGivenRate) {
  for (const bool with_signal : {false, true}) {
    const auto arrivals = send({.seed = 8, .truncate_probability = 0.3}, 4000, with_signal);
    ASSERT_EQ(arrivals.size(), 4000U);
    int truncated = 0;
    std::int64_t most = 0;
    for (const Arrival& arrival : arrivals) {
      EXPECT_EQ(arrival.flipped_bits, 0);
      truncated += arrival.missing_bytes > 0 ? 1 : 0;
      most = std::max(most, arrival.missing_bytes);
    }
    // 5 standard deviations of 29.
    EXPECT_NEAR(truncated, 1200, 145);
    EXPECT_EQ(most, kBytes) << "nothing at all arrives in some cases";
  }
}

TEST(FaultyTest, DependsOnTheSeedAlone) {
  const FaultOptions options{.seed = 9, .flip_probability = 0.3, .truncate_probability = 0.3};
  const auto first = send(options, 300);
  EXPECT_EQ(send(options, 300), first);
  EXPECT_EQ(send(options, 300, true, true), first) << "delays change what is damaged";
  FaultOptions other = options;
  other.seed = 10;
  EXPECT_NE(send(other, 300), first);
}

TEST(FaultyTest, SparesTheFirstOperations) {
  const auto arrivals = send({.seed = 1, .flip_probability = 1, .skip_operations = 5}, 10);
  ASSERT_EQ(arrivals.size(), 10U);
  for (std::size_t at = 0; at < arrivals.size(); ++at)
    EXPECT_EQ(arrivals[at].flipped_bits, at < 5 ? 0 : 1) << "operation " << at;
}

TEST(FaultyTest, SparesTheOwnRankSignalsAndOperationsWithoutPayload) {
  as_rank_0_of_2([](Transport& inner) {
    auto buffer = inner.allocate(2 * kBytes + kSignalStride, "target", soon());
    const auto faulty = make_faulty(inner, {.seed = 1, .flip_probability = 1, .truncate_probability = 1});
    const std::vector<std::byte> payload(kBytes, kNew);
    faulty->put(buffer, 0, 0, payload.data(), kBytes);
    require(std::memcmp(buffer.local, payload.data(), kBytes) == 0, "a put to the own rank was damaged");
    faulty->put_signal(buffer, 1, 0, nullptr, 0, 2 * kBytes, 3);
    faulty->signal(buffer, 1, 2 * kBytes, 4);
    faulty->quiet();
    require(faulty->damaged() == 0, "damaged operations were counted");
    require(faulty->peer_pointer(buffer, 1) == inner.peer_pointer(buffer, 1), "peer_pointer was touched");
    std::uint64_t word = 0;
    std::memcpy(&word, inner.peer_pointer(buffer, 1) + 2 * kBytes, sizeof word);
    require(word == 4, "the signal is " + std::to_string(word));
  });
}

TEST(FaultyTest, RefusesWhatLiesOutsideAlsoWhereItTruncates) {
  as_rank_0_of_2([](Transport& inner) {
    auto buffer = inner.allocate(2 * kBytes + kSignalStride, "target", soon());
    const auto faulty = make_faulty(inner, {.seed = 2, .truncate_probability = 1});
    const std::vector<std::byte> payload(kBytes, kNew);
    for (int run = 0; run < 20; ++run) {
      EXPECT_THROW(faulty->put(buffer, 1, buffer.bytes - 1, payload.data(), 2), Error);
      EXPECT_THROW(faulty->put_signal(buffer, 1, buffer.bytes - 1, payload.data(), 2, 0, 1), Error);
    }
    EXPECT_THROW(static_cast<void>(make_faulty(inner, {.flip_probability = 1.5})), Error);
    EXPECT_THROW(static_cast<void>(make_faulty(inner, {.truncate_probability = -0.1})), Error);
  });
}

}  // namespace
}  // namespace shunt

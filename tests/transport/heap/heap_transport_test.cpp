#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

#include "fake_heap.h"
#include "heap/heap_transport.h"

namespace shunt::heap {
namespace {

using namespace std::chrono_literals;

[[nodiscard]] Deadline soon() {
  return Clock::now() + 60s;
}

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

using Body = std::function<void(HeapTransport&, FakeHeap&)>;

[[nodiscard]] std::vector<RankOutcome> run(const FakeWorld& world, std::int32_t ranks, RankMode mode,
                                           const Body& body) {
  return run_ranks({.ranks = ranks, .mode = mode}, [&](Transport& host) {
    auto heap = std::make_unique<FakeHeap>(world, host.world().rank);
    FakeHeap& fake = *heap;
    HeapTransport transport(host, std::move(heap), soon());
    body(transport, fake);
    return 0;
  });
}

void expect_all_well(const std::vector<RankOutcome>& outcomes) {
  for (const RankOutcome& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

/// Code and text of the error that `call` throws.
template <class Call>
void require_error(Errc code, const std::string& part, const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    require(error.code() == code,
            std::string("another code: ") + errc_name(error.code()) + ": " + error.what());
    require(std::string(error.what()).find(part) != std::string::npos,
            std::string("another text: ") + error.what());
    return;
  }
  throw Error(Errc::check_failed, "no error, expected one with '" + part + "'");
}

void all_done(HeapTransport& transport) {
  transport.make_collectives(64, soon())->barrier(60s);
}

/// Every rank puts to every other one from host memory and from symmetric memory, with a signal each.
void exchange(HeapTransport& transport, std::int64_t bytes) {
  const std::int32_t rank = transport.world().rank;
  const std::int32_t size = transport.world().size;
  const std::int64_t words = 2 * size * kSignalStride;
  auto buffer = transport.allocate(words + (2 * size + 1) * bytes, "test", soon());
  const auto at = [&](std::int32_t place) { return words + place * bytes; };
  const auto fill = [&](std::int32_t from, bool symmetric) {
    std::vector<std::byte> row(static_cast<std::size_t>(bytes));
    for (std::size_t i = 0; i < row.size(); ++i) {
      // Without a period that a piece of the staging buffer could have.
      row[i] = static_cast<std::byte>((i + 1) * 2654435761U >> 24 ^
                                      (static_cast<std::size_t>(from) * 31 + (symmetric ? 3 : 0)));
    }
    return row;
  };
  const std::vector<std::byte> mine = fill(rank, false);
  const std::vector<std::byte> shared = fill(rank, true);
  std::copy(shared.begin(), shared.end(), buffer.local + at(2 * size));
  for (std::int32_t peer = 0; peer < size; ++peer) {
    transport.put_signal(buffer, peer, at(rank), mine.data(), bytes, rank * kSignalStride, 5);
    transport.put(buffer, peer, at(size + rank), buffer.local + at(2 * size), bytes);
    transport.signal(buffer, peer, (size + rank) * kSignalStride, 7);
  }
  transport.quiet();
  for (std::int32_t peer = 0; peer < size; ++peer) {
    const WaitSite site{.phase = "test", .peer = peer};
    require(transport.wait_signal(buffer, peer * kSignalStride, 5, soon(), site) == 5, "first signal");
    const std::vector<std::byte> direct = fill(peer, false);
    require(std::equal(direct.begin(), direct.end(), buffer.local + at(peer)), "bytes from host memory");
    require(transport.wait_signal(buffer, (size + peer) * kSignalStride, 6, soon(), site) == 7,
            "second signal");
    const std::vector<std::byte> staged = fill(peer, true);
    require(std::equal(staged.begin(), staged.end(), buffer.local + at(size + peer)),
            "bytes from symmetric memory");
    require(transport.poll_signal(buffer, peer * kSignalStride) == 5, "poll");
  }
  transport.release(buffer);
}

TEST(HeapTransportTest, MovesBytesAmongRanksThatStoreToEachOther) {
  for (const RankMode mode : {RankMode::threads, RankMode::processes}) {
    const FakeWorld world(4);
    expect_all_well(run(world, 4, mode, [](HeapTransport& transport, FakeHeap&) {
      require(transport.capabilities().load_store, "load_store");
      require(transport.capabilities().device_memory, "device_memory");
      exchange(transport, 1000);
    }));
  }
}

TEST(HeapTransportTest, MovesBytesOverTheNetworkInPiecesOfTheStagingBuffer) {
  for (const RankMode mode : {RankMode::threads, RankMode::processes}) {
    const FakeWorld world(2);
    expect_all_well(run(world, 4, mode, [](HeapTransport& transport, FakeHeap&) {
      require(!transport.capabilities().load_store, "load_store");
      require(transport.provider() == "pigeons", "provider");
      exchange(transport, HeapTransport::kStagingBytes + 4097);
    }));
  }
}

TEST(HeapTransportTest, PointsToPeersOfTheNodeOnly) {
  const FakeWorld world(2);
  expect_all_well(run(world, 4, RankMode::threads, [&](HeapTransport& transport, FakeHeap&) {
    auto buffer = transport.allocate(64, "test", soon());
    for (std::int32_t peer = 0; peer < 4; ++peer) {
      const bool near = peer / 2 == transport.world().rank / 2;
      require((transport.peer_pointer(buffer, peer) != nullptr) == near,
              "pointer to rank " + std::to_string(peer));
    }
    require(transport.peer_pointer(buffer, transport.world().rank) == buffer.local, "own part");
    require(transport.peer_pointer(buffer, 4) == nullptr, "no such rank");
    all_done(transport);
  }));
}

TEST(HeapTransportTest, FindsAWordThatAKernelStored) {
  const FakeWorld world(2);
  expect_all_well(run(world, 2, RankMode::processes, [](HeapTransport& transport, FakeHeap&) {
    auto buffer = transport.allocate(kSignalStride, "test", soon());
    // No bell rings: the peer stores as a kernel does.
    FakeHeap::store(transport.peer_pointer(buffer, 1 - transport.world().rank), 9);
    const WaitSite site{.phase = "test", .peer = 1 - transport.world().rank};
    require(transport.wait_signal(buffer, 0, 9, soon(), site) == 9, "the word");
    all_done(transport);
  }));
}

TEST(HeapTransportTest, SignalsArriveWithoutFurtherCallsOfTheirSender) {
  for (const std::int32_t ranks_of_node : {1, 2}) {
    const FakeWorld world(ranks_of_node);
    expect_all_well(run(world, 2, RankMode::threads, [](HeapTransport& transport, FakeHeap&) {
      auto buffer = transport.allocate(kSignalStride, "test", soon());
      if (transport.world().rank == 0) transport.signal(buffer, 1, 0, 3);
      if (transport.world().rank == 1) {
        const Deadline end = Clock::now() + 10s;
        require(transport.wait_signal(buffer, 0, 3, end, {.phase = "test", .peer = 0}) == 3, "the signal");
      }
      all_done(transport);
    }));
  }
}

TEST(HeapTransportTest, NamesTheRankWhoseSignalIsMissing) {
  const FakeWorld world(1);
  const auto outcomes = run(world, 3, RankMode::processes, [](HeapTransport& transport, FakeHeap&) {
    auto buffer = transport.allocate(kSignalStride, "test", soon());
    // Rank 2 never signals, and outlives the deadline of the others.
    if (transport.world().rank == 2) std::this_thread::sleep_for(3s);
    if (transport.world().rank != 2)
      transport.wait_signal(buffer, 0, 1, Clock::now() + 300ms, {.phase = "dispatch", .peer = 2});
  });
  for (std::size_t rank = 0; rank < 2; ++rank) {
    // Who gives up first accuses rank 2, and the other may hear that before its own deadline.
    EXPECT_TRUE(outcomes[rank].code == Errc::timeout || outcomes[rank].code == Errc::peer_lost)
        << outcomes[rank].message;
    EXPECT_NE(outcomes[rank].message.find("rank 2"), std::string::npos) << outcomes[rank].message;
    EXPECT_NE(outcomes[rank].message.find("dispatch"), std::string::npos) << outcomes[rank].message;
  }
}

TEST(HeapTransportTest, NamesAKilledRankAndGivesNothingBackWithoutIt) {
  const FakeWorld world(2);
  const auto outcomes = run(world, 2, RankMode::processes, [](HeapTransport& transport, FakeHeap&) {
    auto buffer = transport.allocate(kSignalStride, "test", soon());
    if (transport.world().rank == 1) kill(getpid(), SIGKILL);
    transport.wait_signal(buffer, 0, 1, soon(), {.phase = "combine", .peer = 1});
  });
  EXPECT_EQ(outcomes[0].code, Errc::peer_lost) << outcomes[0].message;
  EXPECT_NE(outcomes[0].message.find("lost rank 1"), std::string::npos) << outcomes[0].message;
  EXPECT_EQ(outcomes[1].signal, SIGKILL);
  EXPECT_EQ(world.calls(0).back(), FakeHeap::kAlone);
}

TEST(HeapTransportTest, GivesMemoryBackTogetherWhateverTheOrderOfReleases) {
  const FakeWorld world(2);
  expect_all_well(run(world, 2, RankMode::threads, [](HeapTransport& transport, FakeHeap&) {
    std::vector<SymmetricBuffer> buffers;
    for (int i = 0; i < 4; ++i) buffers.push_back(transport.allocate(64, "test", soon()));
    const bool first = transport.world().rank == 0;
    transport.release(buffers[first ? 0 : 2]);
    transport.release(buffers[first ? 2 : 1]);
    const auto next = transport.allocate(64, "next", soon());
    require(next.id == 3, "the slot that both had released is used again, not " + std::to_string(next.id));
    require_error(Errc::invalid_argument, "buffer -1 has 0 bytes",
                  [&] { transport.put(buffers[2], 0, 0, "x", 1); });
    all_done(transport);
  }));
  EXPECT_EQ(world.calls(0), world.calls(1));
  EXPECT_EQ(world.calls(0).back(), FakeHeap::kTogether);
  // Staging, four buffers, one back, one again, and all of them at the end.
  EXPECT_EQ(world.calls(0).size(), 5U + 1U + 1U + 5U + 1U);
}

TEST(HeapTransportTest, RefusesWhatOneRankHasNoRoomFor) {
  FakeWorld world(2);
  world.poor_rank = 1;
  expect_all_well(run(world, 3, RankMode::threads, [](HeapTransport& transport, FakeHeap&) {
    require_error(Errc::out_of_memory, "on that of rank 1 4.00 MiB are free",
                  [&] { static_cast<void>(transport.allocate(FakeWorld::kPartBytes / 2, "rows", soon())); });
    exchange(transport, 10);
  }));
}

TEST(HeapTransportTest, NamesTheRankThatTheLibraryGaveNothing) {
  FakeWorld world(2);
  world.unlucky_rank = 2;
  world.unlucky_slot = 1;
  expect_all_well(run(world, 3, RankMode::threads, [&](HeapTransport& transport, FakeHeap&) {
    require_error(Errc::out_of_memory, "rows: rank 2 could not get its",
                  [&] { static_cast<void>(transport.allocate(100, "rows", soon())); });
    // Slot 1 is given back by all ranks with the next call, and would fail again.
    require_error(Errc::out_of_memory, "rank 2",
                  [&] { static_cast<void>(transport.allocate(100, "rows", soon())); });
  }));
  EXPECT_EQ(world.calls(0), world.calls(2));
}

TEST(HeapTransportTest, RefusesDifferentAndNegativeSizes) {
  const FakeWorld world(2);
  expect_all_well(run(world, 2, RankMode::threads, [](HeapTransport& transport, FakeHeap&) {
    require_error(
        Errc::invalid_argument, "rank 0 asks for 8 bytes of symmetric memory and rank 1 for 16",
        [&] { static_cast<void>(transport.allocate(transport.world().rank == 0 ? 8 : 16, "rows", soon())); });
    require_error(Errc::invalid_argument, "-1 bytes of symmetric memory; 0 or more are allowed",
                  [&] { static_cast<void>(transport.allocate(-1, "rows", soon())); });
    exchange(transport, 0);
  }));
}

TEST(HeapTransportTest, RefusesWhatLiesOutsideOfABuffer) {
  const FakeWorld world(1);
  expect_all_well(run(world, 2, RankMode::threads, [](HeapTransport& transport, FakeHeap&) {
    auto buffer = transport.allocate(128, "rows", soon());
    const std::byte source[200] = {};
    require_error(Errc::invalid_argument, "129 bytes at offset 0 of rank 1, but buffer 1 has 128 bytes",
                  [&] { transport.put(buffer, 1, 0, source, 129); });
    require_error(Errc::invalid_argument, "offset -8", [&] { transport.put(buffer, 1, -8, source, 8); });
    require_error(Errc::invalid_argument, "of rank 2, but", [&] { transport.put(buffer, 2, 0, source, 8); });
    require_error(Errc::invalid_argument, "multiples of 8 bytes", [&] { transport.signal(buffer, 1, 4, 1); });
    require_error(Errc::invalid_argument, "offset 128",
                  [&] { static_cast<void>(transport.poll_signal(buffer, 128)); });
    all_done(transport);
  }));
}

TEST(HeapTransportTest, SaysThatItCannotLeaveRanksOut) {
  const FakeWorld world(2);
  expect_all_well(run(world, 2, RankMode::threads, [](HeapTransport& transport, FakeHeap&) {
    require(!transport.capabilities().maskable, "maskable");
    const std::vector<std::int32_t> other{1 - transport.world().rank};
    require_error(Errc::unavailable, "fake", [&] { transport.exclude(other); });
    all_done(transport);
  }));
}

}  // namespace
}  // namespace shunt::heap

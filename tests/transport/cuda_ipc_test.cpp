// GPU memory behind Transport, on GPUs that are none: what the conformance suite does not ask of every transport.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/membership.h>

#include "cuda_ipc/cuda_api.h"
#include "cuda_ipc/device_transport.h"
#include "cuda_ipc/file_exchange.h"
#include "transport/fake_gpus.h"

namespace shunt {
namespace {

using cuda_ipc::DeviceApi;
using cuda_ipc::DeviceTransport;
using testing_support::FakeGpuFaults;
using testing_support::FakeGpuOptions;
using testing_support::FakeGpus;
using namespace std::chrono_literals;

Deadline patience() {
  return Clock::now() + 60s;
}

std::string message_of(const std::function<void()>& call, Errc code) {
  try {
    call();
  } catch (const Error& error) {
    if (error.code() == code) return error.what();
    throw Error(Errc::check_failed, std::string("wrong code: ") + error.what());
  }
  throw Error(Errc::check_failed, "nothing was thrown");
}

void require(bool good, const std::string& what) {
  if (!good) throw Error(Errc::check_failed, what);
}

void require_contains(const std::string& text, const std::string& part) {
  require(text.find(part) != std::string::npos, "'" + part + "' is not in '" + text + "'");
}

std::vector<RankOutcome> run(std::int32_t ranks, RankMode mode, const std::function<void(Transport&)>& body) {
  return run_ranks({.ranks = ranks, .mode = mode}, [&](Transport& host) {
    body(host);
    return 0;
  });
}

void expect_well(const std::vector<RankOutcome>& outcomes) {
  for (const RankOutcome& outcome : outcomes)
    EXPECT_EQ(outcome.exit_status, 0) << "rank " << outcome.rank << ": " << outcome.message;
}

std::string name_of(RankMode mode) {
  return mode == RankMode::threads ? "Threads" : "Processes";
}

class CudaIpcTest : public testing::TestWithParam<RankMode> {};

INSTANTIATE_TEST_SUITE_P(Modes, CudaIpcTest, testing::Values(RankMode::processes, RankMode::threads),
                         [](const auto& mode) { return name_of(mode.param); });

/// One rank cannot do its part of an allocation: all say so in the same words, nothing stays, and the next one works.
void expect_failure(RankMode mode, const FakeGpuFaults& faults, Errc code, const std::string& words) {
  const FakeGpus gpus({});
  expect_well(run(3, mode, [&](Transport& host) {
    const std::int32_t rank = host.world().rank;
    DeviceTransport transport(host, gpus.open(rank, rank == 1 ? faults : FakeGpuFaults{}), patience());
    const auto collectives = transport.make_collectives(8, patience());
    const std::int64_t before = testing_support::fake_gpu_mappings();
    const std::string message =
        message_of([&] { static_cast<void>(transport.allocate(100'000, "token buffer", patience())); }, code);
    require_contains(message, "rank " + std::to_string(rank) + ": token buffer: rank 1 " + words);
    collectives->barrier(60s);
    require(testing_support::fake_gpu_mappings() == before, "memory stays mapped after a failure");
    require(gpus.used(0) == 0, "memory stays in use after a failure");
    collectives->barrier(60s);
    auto buffer = transport.allocate(100'000, "token buffer", patience());
    require(buffer.local != nullptr, "the transport is not usable after a failure");
    transport.release(buffer);
  }));
  EXPECT_EQ(gpus.used(0), 0);
}

TEST_P(CudaIpcTest, FailsAlikeWhereOneRankGetsNoMemory) {
  expect_failure(GetParam(), {.allocations = 1}, Errc::out_of_memory, "could not get its memory");
}

TEST_P(CudaIpcTest, FailsAlikeWhereOneRankCannotImport) {
  expect_failure(GetParam(), {.imports = 1}, Errc::unavailable, "cannot share memory with rank ");
}

TEST(CudaIpcProcessesTest, FailsAlikeWhereOneRankCannotExport) {
  expect_failure(RankMode::processes, {.exports = 1}, Errc::unavailable, "cannot share memory with rank 1");
}

TEST_P(CudaIpcTest, SaysWhatIsFreeWhereMemoryRunsOut) {
  const FakeGpus gpus({.devices = 2, .bytes_each = 4 << 20});
  expect_well(run(4, GetParam(), [&](Transport& host) {
    DeviceTransport transport(host, gpus.open(host.world().local_rank), patience());
    auto first = transport.allocate(1 << 20, "first", patience());
    const std::string message = message_of(
        [&] { static_cast<void>(transport.allocate(3 << 19, "second", patience())); }, Errc::out_of_memory);
    require_contains(message,
                     "rank " + std::to_string(host.world().rank) + ": second needs 3.00 MiB on GPU 0");
    require_contains(message, "(1.50 MiB each for 2 of 4 ranks)");
    require_contains(message, "but 2.00 MiB of its 4.00 MiB are available");
    auto second = transport.allocate(1 << 20, "second", patience());
    transport.release(second);
    transport.release(first);
  }));
}

TEST_P(CudaIpcTest, NamesBothGpusWhereTheyDoNotReachEachOther) {
  const FakeGpus gpus({.devices = 2, .connected = false});
  expect_well(run(4, GetParam(), [&](Transport& host) {
    const std::string message = message_of(
        [&] { const DeviceTransport transport(host, gpus.open(host.world().local_rank), patience()); },
        Errc::unavailable);
    require_contains(message, "rank " + std::to_string(host.world().rank) + ": GPU memory: rank 0 on GPU 0");
    require_contains(message, "memory of rank 1 on GPU 1");
    require_contains(message, "SHUNT_DEVICE");
  }));
}

TEST_P(CudaIpcTest, SharesWithThreadsAloneWhereTheDriverExportsNothing) {
  const FakeGpus gpus({.exports_files = false});
  expect_well(run(2, GetParam(), [&](Transport& host) {
    const auto open = [&] { return DeviceTransport(host, gpus.open(0), patience()).capabilities(); };
    if (GetParam() == RankMode::threads) {
      require(open().device_memory, "threads can share it");
    } else {
      require_contains(message_of([&] { static_cast<void>(open()); }, Errc::unavailable),
                       "rank 0 cannot share the memory of GPU 0 (Fake GPU) with rank 1, another process");
    }
  }));
}

TEST_P(CudaIpcTest, FindsAWordThatAKernelHasStored) {
  const FakeGpus gpus({});
  expect_well(run(2, GetParam(), [&](Transport& host) {
    const std::int32_t rank = host.world().rank;
    DeviceTransport transport(host, gpus.open(rank), patience());
    auto buffer = transport.allocate(2 * kSignalStride, "words", patience());
    if (rank == 0) {
      std::this_thread::sleep_for(50ms);  // The other one sleeps in its wait.
      const std::unique_ptr<DeviceApi> kernel = gpus.open(rank);
      kernel->store_signal(transport.peer_pointer(buffer, 1), 7);
      kernel->synchronize();
      require(transport.wait_signal(buffer, kSignalStride, 1, patience(), {"answer", 1}) == 1, "the answer");
    } else {
      require(transport.wait_signal(buffer, 0, 7, patience(), {"kernel", 0}) == 7, "the kernel's word");
      require(transport.poll_signal(buffer, 0) == 7, "the kernel's word, polled");
      // The waits of the host transport go on as before.
      transport.signal(buffer, 0, kSignalStride, 1);
    }
    transport.make_collectives(8, patience())->barrier(60s);
    transport.release(buffer);
  }));
}

TEST_P(CudaIpcTest, MovesCollectivesThroughHostMemory) {
  const FakeGpus gpus({});
  expect_well(run(3, GetParam(), [&](Transport& host) {
    DeviceTransport transport(host, gpus.open(0), patience());
    require(&transport.host() == &host, "host() is the transport beneath");
    const auto collectives = transport.make_collectives(64, patience());
    std::int64_t mine = 10 + host.world().rank;
    std::memcpy(collectives->send_buffer(), &mine, sizeof mine);
    std::vector<std::int64_t> all(3);
    collectives->allgather(collectives->send_buffer(), sizeof mine, all.data(), 60s);
    require(all == std::vector<std::int64_t>({10, 11, 12}), "allgather");
    require(gpus.used(0) == 0, "collectives took device memory");
  }));
}

/// What survivors hold is theirs, and what they allocate afterwards nobody else has.
TEST_P(CudaIpcTest, GoesOnWithoutAnExcludedRank) {
  const FakeGpus gpus({});
  const std::vector<RankOutcome> outcomes = run(4, GetParam(), [&](Transport& host) {
    const std::int32_t rank = host.world().rank;
    DeviceTransport transport(host, gpus.open(rank), patience());
    Membership membership(transport, patience());
    auto old = transport.allocate(4 * kSignalStride, "words", patience());
    if (rank == 2) throw Error(Errc::io, "rank 2 has had enough");
    const std::string message = message_of(
        [&] {
          transport.wait_signal(old, 0, 1, patience(), {"dispatch", 2});
        },
        Errc::peer_lost);
    const std::vector<std::int32_t> suspects = {2};
    const Agreement agreement = membership.agree(suspects, 5, 4000ms);
    require(agreement.lost == suspects, "rank 2 alone is lost: " + message);
    require(transport.excluded(2) && transport.peer_pointer(old, 2) == nullptr, "rank 2 is excluded");
    transport.signal(old, 2, 0, 1);
    auto fresh = transport.allocate(4 * kSignalStride, "new words", patience());
    require(transport.peer_pointer(fresh, 2) == nullptr, "rank 2 has new memory");
    for (const std::int32_t peer : agreement.members) transport.signal(fresh, peer, rank * kSignalStride, 9);
    for (const std::int32_t peer : agreement.members)
      transport.wait_signal(fresh, peer * kSignalStride, 9, patience(), {"combine", peer});
    transport.make_collectives(8, patience())->barrier(60s);
    transport.release(old);
    transport.release(fresh);
  });
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.rank == 2) continue;
    EXPECT_EQ(outcome.exit_status, 0) << outcome.message;
  }
}

/// Ranks are killed while they allocate: the others name the one that is gone, and none hangs.
TEST(CudaIpcProcessesTest, NamesARankThatIsKilledWhileMemoryIsShared) {
  const FakeGpus gpus({});
  for (const std::chrono::microseconds until : {0us, 300us, 1000us, 3000us}) {
    const std::vector<RankOutcome> outcomes = run(4, RankMode::processes, [&](Transport& host) {
      DeviceTransport transport(host, gpus.open(host.world().rank), patience());
      std::thread killer;
      if (host.world().rank == 3) {
        killer = std::thread([until] {
          std::this_thread::sleep_for(until);
          kill(getpid(), SIGKILL);
        });
      }
      for (int step = 0; step < 100'000; ++step) {
        auto buffer = transport.allocate(1000, "words", patience());
        transport.release(buffer);
      }
      killer.join();
    });
    for (const RankOutcome& outcome : outcomes) {
      if (outcome.rank == 3) {
        EXPECT_EQ(outcome.signal, SIGKILL);
      } else {
        EXPECT_EQ(outcome.code, Errc::peer_lost) << outcome.message;
        EXPECT_NE(outcome.message.find("lost rank 3 "), std::string::npos) << outcome.message;
        EXPECT_NE(outcome.message.find(" in allocate"), std::string::npos) << outcome.message;
      }
    }
  }
}

TEST(FileExchangeTest, TakesFilesFromThoseWhoKnowItsNumberOnly) {
  cuda_ipc::FileExchange receiver;
  cuda_ipc::FileExchange sender;
  int ends[2] = {};
  ASSERT_EQ(pipe(ends), 0);
  cuda_ipc::FileExchange::Address wrong = receiver.address();
  ++wrong.cookie;
  sender.send(wrong, 4, 1, ends[0]);
  EXPECT_EQ(receiver.take(4, 1), -1);
  sender.send(receiver.address(), 4, 2, ends[0]);
  EXPECT_EQ(receiver.take(4, 1), -1);
  const int file = receiver.take(4, 2);
  ASSERT_GE(file, 0);
  ASSERT_EQ(write(ends[1], "x", 1), 1);
  char got = 0;
  EXPECT_EQ(read(file, &got, 1), 1);
  EXPECT_EQ(got, 'x');
  EXPECT_EQ(receiver.take(4, 2), -1);
  close(file);
  close(ends[0]);
  close(ends[1]);
}

TEST(CudaDeviceTest, TakesTheListedDevicesInTurn) {
  using cuda_ipc::choose_device;
  using cuda_ipc::parse_devices;
  EXPECT_TRUE(parse_devices(nullptr).empty());
  EXPECT_TRUE(parse_devices("").empty());
  EXPECT_EQ(parse_devices("3"), (std::vector<std::int32_t>{3}));
  EXPECT_EQ(parse_devices("0,2,2"), (std::vector<std::int32_t>{0, 2, 2}));
  for (const char* wrong : {"a", "-1", "0,", ",0", "0 ,1", "1;2", "5000"}) {
    SCOPED_TRACE(wrong);
    try {
      static_cast<void>(parse_devices(wrong));
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::invalid_argument);
      EXPECT_NE(std::string(error.what()).find("SHUNT_DEVICE"), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(choose_device({}, 5, 4), 1);
  EXPECT_EQ(choose_device({3, 1}, 2, 4), 3);
  EXPECT_EQ(choose_device({3, 1}, 3, 4), 1);
  EXPECT_THROW(static_cast<void>(choose_device({4}, 0, 4)), Error);
}

TEST(CudaIpcRegistryTest, SaysWhyThereIsNone) {
  for (const TransportInfo& info : transport_registry()) {
    if (info.name != "cuda_ipc") continue;
    EXPECT_FALSE(info.reason.empty());
    if (info.available) GTEST_SKIP() << "there is a GPU";
    EXPECT_EQ(info.reason, cuda_ipc::cuda_unavailable_reason_from_child());
    try {
      run_ranks({.ranks = 2, .transport = "cuda_ipc"}, [](Transport&) { return 0; });
      ADD_FAILURE() << "ranks were started";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::unavailable);
      EXPECT_EQ(std::string(error.what()), "transport cuda_ipc: " + info.reason);
    }
    return;
  }
  ADD_FAILURE() << "cuda_ipc is not in the registry";
}

}  // namespace
}  // namespace shunt

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

#include "fake_heap.h"
#include "heap/heap_transport.h"
#include "heap/plugin.h"

namespace shunt::heap {
namespace {

using namespace std::chrono_literals;

/// What the functions of the table below do; a table has no state of its own.
FakeWorld* fake_world = nullptr;
std::int32_t rank_without_gpu = -1;
bool same_gpu = false;
bool no_id = false;

[[nodiscard]] PluginTable fake_table() {
  PluginTable table;
  table.build = kPluginBuild;
  table.description = [] { return std::string("Fake 1.0"); };
  table.preflight = [](const HeapOptions& options) {
    Preflight preflight;
    if (options.rank == rank_without_gpu) preflight.reason = "no GPU here";
    preflight.device[0] = static_cast<std::byte>(same_gpu ? 1 : options.rank);
    return preflight;
  };
  table.unique_id = [] {
    if (no_id) throw Error(Errc::unavailable, "no network interface");
    return std::vector<std::byte>(128, std::byte{0x5a});
  };
  table.open = [](const HeapOptions& options) -> SymmetricHeap* {
    if (options.unique_id != std::vector<std::byte>(128, std::byte{0x5a}))
      throw Error(Errc::internal, "another identifier");
    return new FakeHeap(*fake_world, options.rank);
  };
  return table;
}

class OpenHeapTest : public testing::Test {
 protected:
  OpenHeapTest() : world_(2) {
    fake_world = &world_;
    rank_without_gpu = -1;
    same_gpu = no_id = false;
  }
  /// Messages of the ranks; empty where all is well.
  [[nodiscard]] static std::vector<std::string> open(const PluginTable& table, RankMode mode) {
    const auto outcomes = run_ranks({.ranks = 3, .mode = mode}, [&](Transport& host) {
      const RankPlaces places{.devices = {}, .processes = mode == RankMode::processes};
      const auto transport = open_heap_transport(table, "fake", places, host, Clock::now() + 60s);
      if (transport->name() != "fake") throw Error(Errc::check_failed, "another name");
      if (&transport->host() != &host) throw Error(Errc::check_failed, "another host transport");
      return 0;
    });
    std::vector<std::string> messages;
    for (const RankOutcome& outcome : outcomes) messages.push_back(outcome.message);
    return messages;
  }
  static void expect_all(const std::vector<std::string>& messages, const std::string& part) {
    for (const std::string& message : messages) EXPECT_NE(message.find(part), std::string::npos) << message;
  }

 private:
  FakeWorld world_;
};

TEST_F(OpenHeapTest, OpensWithTheIdentifierOfRank0) {
  EXPECT_EQ(open(fake_table(), RankMode::threads), std::vector<std::string>(3));
  EXPECT_EQ(open(fake_table(), RankMode::processes), std::vector<std::string>(3));
}

TEST_F(OpenHeapTest, EveryRankNamesTheOneThatCannotEnter) {
  rank_without_gpu = 1;
  expect_all(open(fake_table(), RankMode::threads), "transport fake: rank 1: no GPU here");
}

TEST_F(OpenHeapTest, EveryRankSaysWhyThereIsNoIdentifier) {
  no_id = true;
  expect_all(open(fake_table(), RankMode::threads), "transport fake: rank 0: no network interface");
}

TEST_F(OpenHeapTest, NamesRanksThatShareAGpuWhereTheLibraryRefuses) {
  same_gpu = true;
  EXPECT_EQ(open(fake_table(), RankMode::threads), std::vector<std::string>(3));
  PluginTable table = fake_table();
  table.one_rank_per_gpu = true;
  expect_all(open(table, RankMode::threads), "ranks 0 and 1 have the same GPU, which Fake 1.0 refuses");
}

TEST_F(OpenHeapTest, RefusesThreadsWhereTheLibraryHasOneRankInAProcess) {
  PluginTable table = fake_table();
  table.one_rank_per_process = true;
  expect_all(open(table, RankMode::threads), "ranks are threads here");
  EXPECT_EQ(open(table, RankMode::processes), std::vector<std::string>(3));
}

TEST(HeapPluginTest, SaysWhyThereIsNone) {
  setenv("SHUNT_PLUGIN_PATH", "/no/such/folder", 1);
  for (const char* name : {"nvshmem", "nccl"}) {
    EXPECT_TRUE(is_heap(name));
    const std::string reason = unavailable_reason_from_child(name);
    // Without the library, without a driver or without a GPU; where there is one, the plugin is at work.
    if (reason.empty())
      EXPECT_FALSE(description_from_child(name).empty());
    else
      EXPECT_EQ(description_from_child(name), "");
  }
  unsetenv("SHUNT_PLUGIN_PATH");
  EXPECT_FALSE(is_heap("shm"));
}

}  // namespace
}  // namespace shunt::heap

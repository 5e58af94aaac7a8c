#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <shunt/core/child.h>
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
std::int32_t rank_without_mps = -1;
bool no_id = false;

[[nodiscard]] PluginTable fake_table() {
  PluginTable table;
  table.build = kPluginBuild;
  table.description = [] { return std::string("Fake 1.0"); };
  table.preflight = [](const HeapOptions& options) {
    Preflight preflight;
    if (options.rank == rank_without_gpu) preflight.reason = "no GPU here";
    preflight.device[0] = static_cast<std::byte>(same_gpu ? 1 : options.rank);
    preflight.shared_by_mps = options.rank != rank_without_mps;
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
    rank_without_gpu = rank_without_mps = -1;
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
  table.sharing = GpuSharing::refused;
  expect_all(open(table, RankMode::threads), "ranks 0 and 1 have the same GPU, which Fake 1.0 refuses");
}

TEST_F(OpenHeapTest, NamesRanksThatShareAGpuWithoutMpsWhereTheLibraryWantsIt) {
  PluginTable table = fake_table();
  table.sharing = GpuSharing::by_mps;
  rank_without_mps = 2;
  EXPECT_EQ(open(table, RankMode::threads), std::vector<std::string>(3)) << "each has a GPU of its own";
  same_gpu = true;
  expect_all(open(table, RankMode::threads),
             "ranks 0 and 2 have the same GPU, which Fake 1.0 serves under CUDA MPS alone");
  rank_without_mps = -1;
  EXPECT_EQ(open(table, RankMode::threads), std::vector<std::string>(3));
}

TEST_F(OpenHeapTest, RefusesThreadsWhereTheLibraryHasOneRankInAProcess) {
  PluginTable table = fake_table();
  table.one_rank_per_process = true;
  expect_all(open(table, RankMode::threads), "ranks are threads here");
  EXPECT_EQ(open(table, RankMode::processes), std::vector<std::string>(3));
}

/// SHUNT_PLUGIN_PATH for the life of this.
class PluginPath {
 public:
  explicit PluginPath(const char* folder) { setenv("SHUNT_PLUGIN_PATH", folder, 1); }
  ~PluginPath() { unsetenv("SHUNT_PLUGIN_PATH"); }
  PluginPath(const PluginPath&) = delete;
  PluginPath& operator=(const PluginPath&) = delete;
};

/// Whether the build that this test is of has the plugin.
[[nodiscard]] bool is_built(const std::string& name) {
  return name == "nccl" ? SHUNT_HAVE_NCCL != 0 : SHUNT_HAVE_NVSHMEM != 0;
}

TEST(HeapPluginTest, KnowsItsTransports) {
  EXPECT_TRUE(is_heap("nvshmem"));
  EXPECT_TRUE(is_heap("nccl"));
  EXPECT_FALSE(is_heap("shm"));
  EXPECT_FALSE(is_heap(""));
}

TEST(HeapPluginTest, SaysWhichOptionWouldBuildIt) {
  for (const char* name : {"nvshmem", "nccl"}) {
    if (is_built(name)) continue;
    const std::string reason = unavailable_reason_from_child(name);
    EXPECT_NE(reason.find("this build has no"), std::string::npos) << reason;
    EXPECT_NE(reason.find("SHUNT_N"), std::string::npos) << reason;
    EXPECT_EQ(description_from_child(name), "");
  }
}

/// Every symbol of the plugin is found, the library's too; whether there is a GPU is another matter.
TEST(HeapPluginTest, LoadsWhatWasBuilt) {
  bool any = false;
  for (const char* name : {"nvshmem", "nccl"}) {
    if (!is_built(name)) continue;
    any = true;
    // In a process of its own, as elsewhere: this one forks ranks.
    const auto loaded = ask_in_child(
        [&] {
          try {
            const PluginTable& table = plugin(name);
            return "loaded " + table.description() + ": " + table.preflight({}).reason;
          } catch (const Error& error) {
            return std::string(error.what());
          }
        },
        60s);
    ASSERT_TRUE(loaded.has_value()) << name;
    EXPECT_EQ(loaded->rfind("loaded N", 0), 0U) << name << ": " << *loaded;
  }
  if (!any) GTEST_SKIP() << "this build has neither NCCL nor NVSHMEM";
}

TEST(HeapPluginTest, RefusesAPluginThatIsNone) {
  if (!is_built("nccl") && !is_built("nvshmem")) GTEST_SKIP() << "this build has neither NCCL nor NVSHMEM";
  const char* name = is_built("nccl") ? "nccl" : "nvshmem";
  const std::string folder = testing::TempDir() + "shunt_plugin_test";
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/libshunt_" + name + ".so") << "no library";
  const PluginPath path(folder.c_str());
  const auto answer = ask_in_child(
      [&] {
        try {
          static_cast<void>(plugin(name));
          return std::string("loaded");
        } catch (const Error& error) {
          return std::string(error.what());
        }
      },
      60s);
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(answer.has_value());
  EXPECT_NE(answer->find("cannot be loaded"), std::string::npos) << *answer;
}

}  // namespace
}  // namespace shunt::heap

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "network_namespace.h"
#include "process.h"

namespace shunt::cli {
namespace {

using Words = std::vector<std::string>;

const Words kTiny{"bench",    "alltoall", "--experts", "8", "--topk",        "2",  "--hidden", "64",
                  "--tokens", "1,4",      "--rounds",  "1", "--max-seconds", "10", "--quiet"};

Words node(const std::string& rank, const std::string& world, const std::string& local) {
  return {"MASTER_ADDR=127.0.0.1", "MASTER_PORT=29511", "WORLD_SIZE=" + world, "WORLD_LOCAL_SIZE=" + local,
          "NODE_RANK=" + rank};
}

Words rank(const std::string& rank, const std::string& world) {
  return {"MASTER_ADDR=127.0.0.1", "MASTER_PORT=29512",  "WORLD_SIZE=" + world,
          "RANK=" + rank,          "LOCAL_RANK=" + rank, "LOCAL_WORLD_SIZE=" + world};
}

/// Whether this build and machine have the transport, as shunt doctor says.
bool has_transport(const std::string& name) {
  std::istringstream in(run_shunt({"doctor", "--json"}).out);
  for (std::string line; std::getline(in, line);) {
    const auto record = nlohmann::json::parse(line);
    if (record.at("record") == "transport" && record.at("name") == name) return record.at("available");
  }
  return false;
}

class LaunchTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string& reason = testing_support::enter_network_namespace(); !reason.empty())
      GTEST_SKIP() << reason;
    std::string pattern = (std::filesystem::temp_directory_path() / "shunt-launch-XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  [[nodiscard]] std::size_t files() const {
    std::size_t count = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_))
      count += entry.is_regular_file() ? 1 : 0;
    return count;
  }

  /// Records of the one result file there is.
  [[nodiscard]] std::vector<nlohmann::json> results() const {
    std::vector<nlohmann::json> records;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
      if (entry.path().extension() != ".jsonl") continue;
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) records.push_back(nlohmann::json::parse(line));
    }
    return records;
  }

  /// The first process printed and wrote, the others did neither; every method that could run was right.
  void expect_one_voice(const std::vector<Ended>& ended, std::int64_t ranks, std::int64_t nodes,
                        const std::string& transport) {
    for (std::size_t i = 0; i < ended.size(); ++i) {
      EXPECT_EQ(ended[i].status, 0) << "process " << i << ": " << ended[i].err;
      EXPECT_EQ(ended[i].err, "") << "process " << i;
      EXPECT_EQ(ended[i].out.empty(), i > 0) << "process " << i << ": " << ended[i].out;
    }
    EXPECT_EQ(files(), 2U);
    const std::vector<nlohmann::json> records = results();
    ASSERT_GT(records.size(), 10U);
    std::set<std::string> hashes;
    std::set<std::string> measured;
    for (std::size_t i = 1; i < records.size(); ++i) {
      const nlohmann::json& record = records[i];
      EXPECT_NE(record.at("status"), "failed") << record;
      EXPECT_EQ(record.at("ranks"), ranks);
      EXPECT_EQ(record.at("nodes"), nodes);
      EXPECT_EQ(record.at("transport"), transport);
      EXPECT_EQ(record.at("clock"), "common") << "all on this machine";
      if (record.at("status") != "ok") continue;
      measured.insert(record.at("method"));
      if (record.at("method") == "shunt/presum") continue;  // other rounding
      if (record.at("tokens_per_rank") == 4 && record.at("result_hash") != "")
        hashes.insert(record.at("result_hash"));
    }
    EXPECT_EQ(hashes.size(), 1U);
    for (const char* method : {"shunt", "simd/put", "simd/alltoallv", "xcopy", "reduce"})
      EXPECT_TRUE(measured.contains(method)) << method;
    EXPECT_EQ(measured.contains("shunt/hier"), nodes > 1);
    EXPECT_EQ(measured.contains("shunt/presum"), nodes > 1);
  }

  std::string folder_;
};

TEST_F(LaunchTest, JoinsTwoNodesByTheirVariables) {
  if (!has_transport("ofi")) GTEST_SKIP() << "no transport ofi here";
  const auto ended = run_job({{node("0", "4", "2")}, {node("1", "4", "2")}}, kTiny, folder_);
  expect_one_voice(ended, 4, 2, "ofi");
}

TEST_F(LaunchTest, JoinsRanksThatTorchrunStarts) {
  const auto ended = run_job({{rank("0", "3")}, {rank("1", "3")}, {rank("2", "3")}}, kTiny, folder_);
  ASSERT_EQ(ended.size(), 3U);
  if (ended[0].status == 2 && ended[0].err.find("this build has no") != std::string::npos)
    GTEST_SKIP() << ended[0].err;
  const std::vector<nlohmann::json> records = results();
  ASSERT_GT(records.size(), 1U) << ended[0].err;
  expect_one_voice(ended, 3, records[1].at("nodes"), records[1].at("transport"));
}

TEST_F(LaunchTest, JoinsRanksThatMpirunStarts) {
  if (run_program({"mpirun", "--version"}).status != 0) GTEST_SKIP() << "no mpirun here";
  if (run_shunt({"doctor"}).out.find("this build has no MPI") != std::string::npos)
    GTEST_SKIP() << "this build has no MPI";
  Words words{"mpirun",
              "-np",
              "4",
              "--oversubscribe",
              "--bind-to",
              "none",
              "--mca",
              "btl_tcp_if_include",
              "lo",
              "--mca",
              "oob_tcp_if_include",
              "lo",
              SHUNT_COMMAND};
  words.insert(words.end(), kTiny.begin(), kTiny.end());
  const Ended ended =
      run_program(words, folder_, {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"});
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(files(), 2U) << "one process writes";
  const std::vector<nlohmann::json> records = results();
  ASSERT_GT(records.size(), 10U);
  EXPECT_EQ(records[1].at("ranks"), 4);
  const std::string once = "written: ";
  const std::size_t found = ended.out.find(once);
  ASSERT_NE(found, std::string::npos) << ended.out;
  EXPECT_EQ(ended.out.find(once, found + 1), std::string::npos) << "one process prints";
}

TEST_F(LaunchTest, TakesRanksOfThisMachineWhereTheyAreAskedFor) {
  Words words = kTiny;
  words.insert(words.end(), {"--ranks", "2"});
  const Ended ended = run_shunt(words, folder_, node("1", "4", "2"));
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(files(), 2U);
}

TEST_F(LaunchTest, NamesTheRankWhoseOptionsDiffer) {
  if (!has_transport("ofi")) GTEST_SKIP() << "no transport ofi here";
  const auto ended =
      run_job({{node("0", "2", "1"), {}}, {node("1", "2", "1"), {"--seed", "2"}}}, kTiny, folder_);
  for (const Ended& one : ended) EXPECT_EQ(one.status, 2) << one.err;
  EXPECT_NE(ended[0].err.find("rank 1 was started with another --seed than rank 0"), std::string::npos)
      << ended[0].err;
  EXPECT_EQ(ended[1].err, "") << "one process speaks";
  EXPECT_EQ(files(), 0U);
}

TEST_F(LaunchTest, RefusesPretendedNodesInAJob) {
  if (!has_transport("ofi")) GTEST_SKIP() << "no transport ofi here";
  for (const char* benchmark : {"alltoall", "transport"}) {
    SCOPED_TRACE(benchmark);
    const auto ended = run_job({{node("0", "2", "1")}, {node("1", "2", "1")}},
                               {"bench", benchmark, "--nodes", "2", "--max-seconds", "2"}, folder_);
    for (const Ended& one : ended) EXPECT_EQ(one.status, 2) << one.err;
    EXPECT_NE(ended[0].err.find("--nodes is 2, but these ranks are a job"), std::string::npos)
        << ended[0].err;
    EXPECT_EQ(files(), 0U);
  }
}

TEST_F(LaunchTest, TellsAllWhatOneNodeRefuses) {
  if (!has_transport("ofi")) GTEST_SKIP() << "no transport ofi here";
  const auto ended =
      run_job({{node("0", "2", "1"), {}}, {node("1", "2", "1"), {"--routing", "trace:/nosuch.jsonl"}}}, kTiny,
              folder_);
  for (const Ended& one : ended) EXPECT_EQ(one.status, 2) << one.err;
  EXPECT_NE(ended[0].err.find("rank 1"), std::string::npos) << ended[0].err;
  EXPECT_EQ(files(), 0U);
}

TEST_F(LaunchTest, NamesTheRankThatDoesNotCome) {
  if (!has_transport("ofi")) GTEST_SKIP() << "no transport ofi here";
  Words words = kTiny;
  words.insert(words.end(), {"--deadline", "3000"});
  const auto ended = run_job({{node("0", "3", "1")}, {node("1", "3", "1")}}, words, folder_);
  for (const Ended& one : ended) {
    EXPECT_NE(one.status, 0);
    EXPECT_LT(one.status, 128) << "ended by itself";
  }
  EXPECT_NE(ended[0].err.find("rank 2"), std::string::npos) << ended[0].err;
  EXPECT_EQ(files(), 0U);
}

TEST_F(LaunchTest, RefusesWrongVariables) {
  Words variables = node("0", "4", "2");
  variables[2] = "WORLD_SIZE=many";
  const Ended ended = run_shunt(kTiny, folder_, variables);
  EXPECT_EQ(ended.status, 2);
  EXPECT_NE(ended.err.find("WORLD_SIZE='many'"), std::string::npos) << ended.err;
}

}  // namespace
}  // namespace shunt::cli

#include <gtest/gtest.h>

#include <map>
#include <string>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

namespace shunt {
namespace {

using Environment = std::map<std::string, std::string>;

[[nodiscard]] Launch detect(const Environment& environment, std::int32_t explicit_ranks = 0) {
  return detect_launch(explicit_ranks, [&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

[[nodiscard]] std::string refusal(const Environment& environment) {
  try {
    static_cast<void>(detect(environment));
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

const Environment kNode = {{"MASTER_ADDR", "10.0.0.1"},
                           {"MASTER_PORT", "29500"},
                           {"WORLD_SIZE", "8"},
                           {"WORLD_LOCAL_SIZE", "4"},
                           {"NODE_RANK", "1"}};
const Environment kRank = {{"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"},
                           {"WORLD_SIZE", "8"},         {"RANK", "5"},
                           {"LOCAL_RANK", "1"},         {"LOCAL_WORLD_SIZE", "4"}};

[[nodiscard]] Environment with(Environment environment, const std::string& name, const std::string& value) {
  environment[name] = value;
  return environment;
}

[[nodiscard]] Environment without(Environment environment, const std::string& name) {
  environment.erase(name);
  return environment;
}

TEST(DetectLaunchTest, IsLocalWhereNothingIsSet) {
  const Launch launch = detect({});
  EXPECT_EQ(launch.way, LaunchWay::local);
  EXPECT_EQ(launch.world_size, 0);
  EXPECT_EQ(detect({{"WORLD_SIZE", "4"}, {"RANK", "1"}}).way, LaunchWay::local);
  EXPECT_EQ(detect({{"PMI_RANK", "1"}}).way, LaunchWay::local);
}

TEST(DetectLaunchTest, ReadsTheVariablesOfANode) {
  const Launch launch = detect(kNode);
  EXPECT_EQ(launch.way, LaunchWay::node);
  EXPECT_EQ(launch.world_size, 8);
  EXPECT_EQ(launch.local_size, 4);
  EXPECT_EQ(launch.node_rank, 1);
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.master_addr, "10.0.0.1");
  EXPECT_EQ(launch.master_port, 29500);
}

TEST(DetectLaunchTest, ReadsTheVariablesOfARank) {
  const Launch launch = detect(kRank);
  EXPECT_EQ(launch.way, LaunchWay::rank);
  EXPECT_EQ(launch.world_size, 8);
  EXPECT_EQ(launch.local_size, 4);
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.master_addr, "10.0.0.1");
  EXPECT_EQ(launch.master_port, 29500);
  EXPECT_EQ(detect(without(kRank, "LOCAL_WORLD_SIZE")).local_size, 0);
}

TEST(DetectLaunchTest, LeavesThePortOfTorchrunToItsStore) {
  EXPECT_EQ(detect(with(kRank, "TORCHELASTIC_USE_AGENT_STORE", "True")).master_port, 29501);
  EXPECT_EQ(detect(with(kRank, "TORCHELASTIC_USE_AGENT_STORE", "False")).master_port, 29500);
  EXPECT_EQ(detect(with(kRank, "SHUNT_PORT", "4711")).master_port, 4711);
  EXPECT_NE(refusal(with(kRank, "SHUNT_PORT", "0")).find("SHUNT_PORT='0'"), std::string::npos);
}

TEST(DetectLaunchTest, ReadsMpiLaunchers) {
  EXPECT_EQ(detect({{"OMPI_COMM_WORLD_SIZE", "2"}}).way, LaunchWay::mpi);
  EXPECT_EQ(detect({{"PMIX_RANK", "0"}}).way, LaunchWay::mpi);
  EXPECT_EQ(detect({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}}).way, LaunchWay::mpi);
  EXPECT_EQ(detect({{"OMPI_COMM_WORLD_SIZE", "2"}}).world_size, 0);
}

TEST(DetectLaunchTest, PrefersTheUserThenTheRankThenTheNode) {
  Environment all = kNode;
  for (const auto& [name, value] : kRank) all[name] = value;
  all["OMPI_COMM_WORLD_SIZE"] = "8";
  EXPECT_EQ(detect(all, 2).way, LaunchWay::local);
  EXPECT_EQ(detect(all).way, LaunchWay::rank);
  all.erase("LOCAL_RANK");
  EXPECT_EQ(detect(all).way, LaunchWay::node);
  EXPECT_EQ(detect({{"OMPI_COMM_WORLD_SIZE", "x"}, {"RANK", "x"}, {"LOCAL_RANK", "x"}}, 2).way,
            LaunchWay::local);
}

TEST(DetectLaunchTest, NamesTheVariableThatIsMissing) {
  for (const char* name : {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"}) {
    EXPECT_NE(refusal(without(kRank, name)).find(std::string(name) + " is not set"), std::string::npos)
        << name;
  }
  for (const char* name : {"MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "WORLD_LOCAL_SIZE", "NODE_RANK"}) {
    EXPECT_NE(refusal(without(kNode, name)).find(std::string(name) + " is not set"), std::string::npos)
        << name;
  }
}

TEST(DetectLaunchTest, NamesTheVariableThatIsWrong) {
  EXPECT_NE(refusal(with(kRank, "RANK", "8")).find("RANK='8'; a whole number from 0 to 7"),
            std::string::npos);
  EXPECT_NE(refusal(with(kRank, "LOCAL_RANK", "-1")).find("LOCAL_RANK='-1'"), std::string::npos);
  EXPECT_NE(refusal(with(kRank, "LOCAL_WORLD_SIZE", "1")).find("LOCAL_WORLD_SIZE='1'; a whole number from 2"),
            std::string::npos);
  EXPECT_NE(refusal(with(kRank, "WORLD_SIZE", "many")).find("WORLD_SIZE='many'"), std::string::npos);
  EXPECT_NE(refusal(with(kRank, "MASTER_PORT", "65536")).find("MASTER_PORT='65536'"), std::string::npos);
  EXPECT_NE(refusal(with(kNode, "NODE_RANK", "2")).find("NODE_RANK='2'"), std::string::npos);
}

}  // namespace
}  // namespace shunt

#include <gtest/gtest.h>

#include <map>
#include <string>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

namespace shunt {
namespace {

using Variables = std::map<std::string, std::string>;

[[nodiscard]] Variables two_nodes() {
  return {{"MASTER_ADDR", "node0"},
          {"MASTER_PORT", "29500"},
          {"WORLD_SIZE", "16"},
          {"WORLD_LOCAL_SIZE", "8"},
          {"NODE_RANK", "1"}};
}

[[nodiscard]] RankEnvironment parse(const Variables& variables) {
  return parse_rank_environment([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

void expect_refused(Variables variables, const std::string& name, const std::string& value,
                    const std::string& part) {
  variables[name] = value;
  try {
    static_cast<void>(parse(variables));
    ADD_FAILURE() << name << "='" << value << "' was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    EXPECT_NE(std::string(error.what()).find(name + "='" + value + "'"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

void expect_refused(const std::string& name, const std::string& value, const std::string& part) {
  expect_refused(two_nodes(), name, value, part);
}

TEST(RankEnvironmentTest, ReadsAllFive) {
  const RankEnvironment environment = parse(two_nodes());
  EXPECT_TRUE(environment.present);
  EXPECT_EQ(environment.master_addr, "node0");
  EXPECT_EQ(environment.master_port, 29500);
  EXPECT_EQ(environment.world_size, 16);
  EXPECT_EQ(environment.local_size, 8);
  EXPECT_EQ(environment.node_rank, 1);
  EXPECT_EQ(environment.nodes(), 2);
}

TEST(RankEnvironmentTest, IsAbsentWithoutAddressAndLocalSize) {
  EXPECT_FALSE(parse({}).present);
  EXPECT_EQ(parse({}).nodes(), 0);
  EXPECT_FALSE(parse({{"WORLD_SIZE", "3"}, {"MASTER_PORT", "1"}, {"NODE_RANK", "7"}}).present);
}

TEST(RankEnvironmentTest, ChecksEachThatIsSetByItself) {
  expect_refused(Variables{}, "WORLD_SIZE", "abc", "a whole number from 1 to ");
  expect_refused(Variables{}, "MASTER_PORT", "65536", "a whole number from 1 to 65535");
  expect_refused(Variables{}, "NODE_RANK", "-1", "a whole number from 0 to ");
  expect_refused(Variables{}, "WORLD_LOCAL_SIZE", "", "a whole number from 1 to ");
  expect_refused(Variables{}, "MASTER_ADDR", "", "a host name");
}

TEST(RankEnvironmentTest, NamesWhatIsMissing) {
  for (const auto& [name, value] : two_nodes()) {
    Variables variables = two_nodes();
    variables.erase(name);
    try {
      static_cast<void>(parse(variables));
      ADD_FAILURE() << "accepted without " << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::invalid_argument);
      EXPECT_NE(std::string(error.what()).find("environment: " + name + " is not set"), std::string::npos)
          << error.what();
    }
  }
}

TEST(RankEnvironmentTest, RefusesWhatIsNoWholeNumberInRange) {
  for (const char* value :
       {"", "0", "-1", "65536", "29500x", " 29500", "0x10", "1e3", "99999999999999999999"}) {
    expect_refused("MASTER_PORT", value, "from 1 to 65535");
  }
  expect_refused("WORLD_SIZE", "0", "from 1 to ");
  expect_refused("WORLD_SIZE", "sixteen", "from 1 to ");
  expect_refused("WORLD_LOCAL_SIZE", "0", "from 1 to ");
  expect_refused("NODE_RANK", "2", "from 0 to 1");
  expect_refused("NODE_RANK", "-1", "from 0 to ");
  expect_refused("MASTER_ADDR", "", "host name");
}

TEST(RankEnvironmentTest, RefusesWorldSizeThatNodesDoNotDivide) {
  expect_refused("WORLD_SIZE", "12", "a multiple of WORLD_LOCAL_SIZE");
  expect_refused("WORLD_SIZE", "4", "a multiple of WORLD_LOCAL_SIZE");
}

TEST(RankEnvironmentTest, AcceptsTheLimits) {
  Variables variables = two_nodes();
  variables["MASTER_PORT"] = "65535";
  variables["WORLD_SIZE"] = "8";
  variables["NODE_RANK"] = "0";
  EXPECT_EQ(parse(variables).master_port, 65535);
  EXPECT_EQ(parse(variables).nodes(), 1);
}

}  // namespace
}  // namespace shunt

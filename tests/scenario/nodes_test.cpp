#include <shunt/scenario/nodes.h>

#include <cstdlib>

#include <gtest/gtest.h>

#include <shunt/core/error.h>

namespace shunt::scenario {
namespace {

using Names = std::vector<std::string>;

System example() {
  System system;
  system.partitions = {
      {"main",
       {{"group1", parse_node_list("node-[033-048]")}, {"group2", parse_node_list("node-[049-064]")}}},
      {"backup", {{"group1", parse_node_list("node0[1-4]")}, {"group2", parse_node_list("node0[5-8]")}}}};
  return system;
}

std::string refusal(const Names& specs, const NodeStates& states = {}, const Names& exclude = {}) {
  try {
    const Names names = resolve_nodes(example(), specs, exclude, states);
    return "accepted " + std::to_string(names.size());
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument);
    return error.what();
  }
}

TEST(NodesTest, ResolvesRanges) {
  EXPECT_EQ(parse_node_list("node0[1-3]"), (Names{"node01", "node02", "node03"}));
  EXPECT_EQ(parse_node_list("node-[001-003,7],login"),
            (Names{"node-001", "node-002", "node-003", "node-7", "login"}));
  EXPECT_EQ(parse_node_list("a, b"), (Names{"a", "b"}));
  EXPECT_EQ(parse_node_list("n[9-10]"), (Names{"n09", "n10"})) << "as wide as the end of the range";
  EXPECT_EQ(parse_node_list("n[1-2]-ib"), (Names{"n1-ib", "n2-ib"}));
  EXPECT_TRUE(parse_node_list(" ").empty());
}

TEST(NodesTest, RefusesMalformedLists) {
  for (const char* text : {"n[1-3", "n1-3]", "n[[1]]", "n[3-1]", "n[a-b]", "n[1-99999999]", "n[]", "a,,b",
                           "n[1,]", "n1;reboot", "$(reboot)", "n[1][2]", "n[-1]", "n[1-999999999999]"})
    EXPECT_THROW((void)parse_node_list(text), Error) << text;
}

TEST(NodesTest, TakesNodesOfAGroupByTheirState) {
  const NodeStates states = {
      {"node01", "allocated"}, {"node02", "down"}, {"node03", "reserved"}, {"node04", "idle"}};
  EXPECT_EQ(resolve_nodes(example(), {"backup:group1:1"}, {}, states), (Names{"node04"}));
  EXPECT_EQ(resolve_nodes(example(), {"backup:group1:2"}, {}, states), (Names{"node01", "node04"}));
  EXPECT_EQ(resolve_nodes(example(), {"backup:group1:max_avail"}, {}, states), (Names{"node03", "node04"}));
  EXPECT_NE(refusal({"backup:group1:4"}, states).find("the group has 3"), std::string::npos);
  EXPECT_EQ(resolve_nodes(example(), {"backup:group1:2"}, {"node01"}), (Names{"node02", "node03"}));
  EXPECT_EQ(resolve_nodes(example(), {"backup:group1:1"}, {}, {}, {"node01"}), (Names{"node02"}))
      << "taken by another test";
}

TEST(NodesTest, NamesAreSortedAndThereOnce) {
  EXPECT_EQ(resolve_nodes(example(), {"node02,node01", "node0[1-2]"}, {}), (Names{"node01", "node02"}));
  EXPECT_NE(refusal({"node01"}, {}, {"node01"}).find("no node is left"), std::string::npos);
}

TEST(NodesTest, RefusesSpecsOfUnknownGroups) {
  for (const char* spec : {"part:", "part:group", "unknown:grp:1", "main:unknown:1", "main:group1:0",
                           "main:group1:x", "main:group1:1:2"})
    EXPECT_EQ(refusal({spec}).find("accepted"), std::string::npos) << spec;
  EXPECT_NE(refusal({"main:grup1:1"}).find("did you mean \"group1\""), std::string::npos);
}

TEST(ImageCacheNameTest, IsThatOfCloudAi) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"http://fake_url/img", "fake_url__img__notag.sqsh"},
      {"nvcr.io#nvidia/pytorch:24.02-py3", "nvcr.io_nvidia__pytorch__24.02-py3.sqsh"},
      {"/local/disk/file", "file__notag.sqsh"},
      {"/local/disk/file:tag", "file__tag.sqsh"},
      {"./local/disk/file:tag", "file__tag.sqsh"},
      {"ditdab.com#org/team/image:latest", "ditdab.com_org_team__image__latest.sqsh"},
      {"registry.invalid.com:5000#group/project", "registry.invalid.com__5000_group_project.sqsh"},
      {"registry.invalid:5050#group/project:latest", "registry.invalid:5050_group__project__latest.sqsh"},
      {"registry.invalid:5051#team/proj/image.v1", "registry.invalid__5051_team_proj_image.v1.sqsh"},
      {"nvcr.io/nvidia#nemo:24.07", "nvcr.io__nvidia_nemo__24.07.sqsh"}};
  for (const auto& [url, expected] : cases) EXPECT_EQ(image_cache_name(url), expected) << url;
}

TEST(SecretTest, IsKnownByItsName) {
  for (const char* name : {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "password", "GITHUBTOKEN",
                           "DB_PASSWORD_2", "NGC_APIKEY", "my-secret"})
    EXPECT_TRUE(looks_secret(name)) << name;
  for (const char* name : {"NUM_OF_TOKENS_PER_CHUNK", "tokens", "NUM_SMS", "KEYBOARD", "PATH", ""})
    EXPECT_FALSE(looks_secret(name)) << name;
  EXPECT_TRUE(has_credentials("https://user:pass@registry.invalid/a/b"));
  EXPECT_TRUE(has_credentials("user:pass@registry.invalid/a"));
  EXPECT_FALSE(has_credentials("registry.invalid:5000#group/project@sha256:12"));
}

TEST(SecretTest, ItsValueIsTakenOutOfTexts) {
  ASSERT_EQ(setenv("SHUNT_TEST_API_KEY", "s3cr3t-value", 1), 0);
  EXPECT_EQ(without_secrets("login s3cr3t-value and s3cr3t-value!"),
            "login [SHUNT_TEST_API_KEY] and [SHUNT_TEST_API_KEY]!");
  ASSERT_EQ(unsetenv("SHUNT_TEST_API_KEY"), 0);
}

}  // namespace
}  // namespace shunt::scenario

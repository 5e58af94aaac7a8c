#include <shunt/cluster/model_shape.h>

#include <algorithm>

#include "temporary_directory.h"

namespace shunt {
namespace {

constexpr const char* kPresets = "presets/models";
constexpr const char* kGood =
    "format = 1\ndescription = \"d\"\nsource = \"s\"\nexperts = 8\ntopk = 2\nhidden = 16\n";

class ModelShapeTest : public testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& content) const {
    return dir_.write(name, content);
  }
  static std::string with(const std::string& from, const std::string& to) {
    return replaced(kGood, from, to);
  }

  void refuse(const std::string& content, const std::string& message) const {
    const std::string path = write("m.toml", content);
    expect_error(Errc::io, path + ":" + message, [&] { (void)read_model_shape(path); });
  }

  TemporaryDirectory dir_;
};

TEST_F(ModelShapeTest, EveryShippedPresetParses) {
  const auto names = list_presets(kPresets);
  EXPECT_GE(names.size(), 15U);
  EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
  for (const std::string& name : names) {
    const ModelShape shape = find_model_shape(name, kPresets);
    EXPECT_EQ(shape.name, name);
    EXPECT_FALSE(shape.description.empty());
    EXPECT_FALSE(shape.source.empty());
    EXPECT_LE(shape.top_k, shape.num_experts);
  }
}

TEST_F(ModelShapeTest, PublishedShapesAreRight) {
  struct Shape {
    const char* name;
    std::int32_t experts, topk;
    std::int64_t hidden;
  };
  for (const Shape& s :
       {Shape{"v2-lite", 64, 6, 2048}, Shape{"r1", 256, 8, 7168}, Shape{"mixtral-8x7b", 8, 2, 4096},
        Shape{"gpt-oss-120b", 128, 4, 2880}, Shape{"kimi-k2", 384, 8, 7168}}) {
    const ModelShape shape = find_model_shape(s.name, kPresets);
    EXPECT_EQ(shape.num_experts, s.experts) << s.name;
    EXPECT_EQ(shape.top_k, s.topk) << s.name;
    EXPECT_EQ(shape.hidden, s.hidden) << s.name;
  }
}

TEST_F(ModelShapeTest, ReadsAPathThatEndsInToml) {
  const ModelShape shape = find_model_shape(write("my.model-1.5.toml", kGood), "no/such/directory");
  EXPECT_EQ(shape.name, "my.model-1.5");
  EXPECT_EQ(shape.hidden, 16);
}

TEST_F(ModelShapeTest, SuggestsTheNearestPreset) {
  write("alpha.toml", kGood);
  write("beta.toml", kGood);
  write("notes.txt", "");
  expect_error(
      Errc::invalid_argument,
      "model preset \"bet\" does not exist; did you mean \"beta\"? Allowed are a path that ends in .toml "
      "and alpha, beta",
      [&] { (void)find_model_shape("bet", dir_.path()); });
}

TEST_F(ModelShapeTest, FindsPresetsByOtherNames) {
  write("alpha-1b.toml", with("experts = 8", "names = [\"First-1B-A2\"]\nexperts = 8"));
  write("broken.toml", "names = [");
  for (const char* name : {"alpha-1b", "Alpha_1B", "owner/alpha-1b", "first-1b-a2", "Owner/First_1B_A2"})
    EXPECT_EQ(find_model_shape(name, dir_.path()).name, "alpha-1b") << name;
  expect_error(
      Errc::invalid_argument,
      "model preset \"First-1B-A3\" does not exist; did you mean \"First-1B-A2\"? Allowed are a path that "
      "ends in .toml and alpha-1b, broken",
      [&] { (void)find_model_shape("First-1B-A3", dir_.path()); });
  refuse(with("experts = 8", "names = \"x\"\nexperts = 8"), "4:9: names: expected a list of texts in quotes");
  refuse(with("experts = 8", "names = [\"x\", 1]\nexperts = 8"),
         "4:9: names: expected a list of texts in quotes");
}

// Whoever types a model as its publisher calls it gets it.
TEST(ModelNamesTest, PublishedNamesArePresets) {
  for (const auto& [name, preset] : {std::pair<const char*, const char*>{"deepseek-ai/DeepSeek-V3", "r1"},
                                     {"deepseek-r1", "r1"},
                                     {"DeepSeek-V2-Lite", "v2-lite"},
                                     {"moonshotai/Kimi-K2-Instruct", "kimi-k2"},
                                     {"openai/gpt-oss-120b", "gpt-oss-120b"},
                                     {"mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"},
                                     {"Qwen/Qwen3-30B-A3B", "qwen3-30b"},
                                     {"qwen3-235b-a22b", "qwen3-235b"},
                                     {"Qwen3-Coder-480B-A35B", "qwen3-coder-480b"},
                                     {"Qwen3-Next-80B-A3B", "qwen3-next-80b"},
                                     {"zai-org/GLM-4.6", "glm-4.5"},
                                     {"olmoe", "olmoe-1b-7b"}})
    EXPECT_EQ(find_model_shape(name, kPresets).name, preset) << name;
}

TEST_F(ModelShapeTest, NamesDirectoryThatCannotBeListed) {
  expect_error(Errc::io,
               "no/such: cannot list the model presets: No such file or directory; SHUNT_PRESETS names their "
               "directory",
               [] { (void)list_presets("no/such"); });
  expect_error(Errc::invalid_argument, "model preset \"r1\": " + dir_.path() + " holds no presets",
               [&] { (void)find_model_shape("r1", dir_.path()); });
  expect_error(Errc::io, dir_.path() + "/none.toml: cannot read this file",
               [&] { (void)read_model_shape(dir_.path() + "/none.toml"); });
}

TEST_F(ModelShapeTest, NamesLineAndColumnOfEveryMistake) {
  refuse(with("experts", "expert"),
         "4:1: unknown key \"expert\"; did you mean \"experts\"? Allowed are format, description, source, "
         "names, experts, topk, hidden, architecture, attention, linear_attention");
  refuse(with("topk", "  tpok"),
         "5:3: unknown key \"tpok\"; did you mean \"topk\"? Allowed are format, description, source, "
         "names, experts, topk, hidden, architecture, attention, linear_attention");
  refuse(with("format = 1\n", ""), "1:1: key \"format\" is missing");
  refuse(with("hidden = 16\n", ""), "1:1: key \"hidden\" is missing");
  refuse(with("format = 1", "format = 2"), "1:10: format: expected an integer in [1, 1]");
  refuse(with("experts = 8", "experts = 0"), "4:11: experts: expected an integer in [1, 2147483647]");
  refuse(with("experts = 8", "experts = 8.0"), "4:11: experts: expected an integer in [1, 2147483647]");
  refuse(with("topk = 2", "topk = 9"), "5:8: topk: expected an integer in [1, 8]");
  refuse(with("topk = 2", "topk = \"2\""), "5:8: topk: expected an integer in [1, 8]");
  refuse(with("\"d\"", "\"\""), "2:15: description: expected a text in quotes");
  refuse(with("\"s\"", "7"), "3:10: source: expected a text in quotes");
}

TEST_F(ModelShapeTest, NamesLineOfBrokenToml) {
  const std::string path = write("m.toml", with("experts = 8", "experts = = 8"));
  try {
    (void)read_model_shape(path);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::io);
    EXPECT_EQ(std::string(error.what()).rfind(path + ":4:11: not valid TOML: ", 0), 0U) << error.what();
  }
}

TEST_F(ModelShapeTest, PresetDirectoryFollowsTheEnvironment) {
  ASSERT_EQ(unsetenv("SHUNT_PRESETS"), 0);
  EXPECT_EQ(list_presets(preset_directory()), list_presets(kPresets));
  ASSERT_EQ(setenv("SHUNT_PRESETS", dir_.path().c_str(), 1), 0);
  EXPECT_EQ(preset_directory(), dir_.path());
  ASSERT_EQ(unsetenv("SHUNT_PRESETS"), 0);
}

}  // namespace
}  // namespace shunt

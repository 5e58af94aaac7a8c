#include <filesystem>

#include <gtest/gtest.h>

#include <shunt/routing/trace.h>

#include "expect_error.h"
#include "json_position.h"
#include "temp_dir.h"

namespace shunt {
namespace {

using test::expect_error;
using test::TempDir;

Trace small_trace() {
  Trace trace;
  trace.num_experts = 300;
  trace.top_k = 2;
  trace.source = "a \"model\", layer 3 \xc3\xa9\n";
  // 0.1, the smallest subnormal, a third and values that need all digits of a float.
  trace.steps = {
      {Routing{2, 2, 300, {0, 299, -1, 7}, {0.1F, 0.9F, 0.0F, 1e-45F}}, Routing{0, 2, 300, {}, {}}},
      {Routing{1, 2, 300, {5, 4}, {1.0F / 3.0F, 16777217.0F}}, Routing{1, 2, 300, {1, 2}, {-2.5F, 3.4e38F}}},
  };
  return trace;
}

void expect_equal(const Trace& a, const Trace& b) {
  EXPECT_EQ(a.num_experts, b.num_experts);
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(a.source, b.source);
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (std::size_t s = 0; s < a.steps.size(); ++s) {
    ASSERT_EQ(a.steps[s].size(), b.steps[s].size());
    for (std::size_t g = 0; g < a.steps[s].size(); ++g) {
      EXPECT_EQ(a.steps[s][g].num_tokens, b.steps[s][g].num_tokens);
      EXPECT_EQ(a.steps[s][g].num_experts, b.steps[s][g].num_experts);
      EXPECT_EQ(a.steps[s][g].top_k, b.steps[s][g].top_k);
      EXPECT_EQ(a.steps[s][g].ids, b.steps[s][g].ids);
      EXPECT_EQ(a.steps[s][g].weights, b.steps[s][g].weights);
    }
  }
}

TEST(TraceTest, ReadsBackWhatItWrote) {
  const TempDir dir;
  const std::string path = dir.file("t.jsonl");
  write_trace(path, small_trace());
  expect_equal(read_trace(path), small_trace());
}

TEST(TraceTest, ReadsBackRoutedWeightsToTheBit) {
  const TempDir dir;
  const Router router(parse_routing("powerlaw:1+mask:0.1"), {500, 2, 64, 6}, 11);
  Trace trace;
  trace.num_experts = 64;
  trace.top_k = 6;
  trace.steps = {{router.route(0), router.route(1)}};
  write_trace(dir.file("t.jsonl"), trace);
  expect_equal(read_trace(dir.file("t.jsonl")), trace);
}

TEST(TraceTest, NeverOverwrites) {
  const TempDir dir;
  const std::string path = dir.write("t.jsonl", "mine");
  try {
    write_trace(path, small_trace());
    FAIL() << "overwritten";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::io);
    EXPECT_NE(std::string(error.what()).find(path), std::string::npos);
  }
}

TEST(TraceTest, RefusesToWriteMalformedTraces) {
  const TempDir dir;
  const std::string path = dir.file("t.jsonl");
  const auto refuse = [&](const std::string& why, auto&& change) {
    Trace trace = small_trace();
    change(trace);
    expect_error(Errc::invalid_argument, "trace for " + path + ": " + why, [&] { write_trace(path, trace); });
  };
  refuse("at least one step with one group is needed", [](Trace& t) { t.steps.clear(); });
  refuse("at least one step with one group is needed", [](Trace& t) { t.steps = {{}}; });
  refuse("step 1 has 1 groups; step 0 has 2", [](Trace& t) { t.steps[1].pop_back(); });
  refuse("step 1, group 0: 300 experts and top-k 1; the trace has 300 and 2", [](Trace& t) {
    t.steps[1][0] = Routing{1, 1, 300, {0}, {1.0F}};
  });
  refuse("step 0, group 0: token 0, k 1: expert 300 is outside [-1, 299]",
         [](Trace& t) { t.steps[0][0].ids[1] = 300; });
  refuse("the source is not valid UTF-8", [](Trace& t) { t.source = "\xff"; });
  EXPECT_FALSE(std::filesystem::exists(path));
}

constexpr const char* kHeader =
    R"({"record":"trace","format":1,"experts":8,"topk":2,"groups":1,"steps":2,"source":"test"})";
constexpr const char* kStep0 = R"({"step":0,"group":0,"ids":[[0,1]],"weights":[[0.5,0.5]]})";
constexpr const char* kStep1 = R"({"step":1,"group":0,"ids":[],"weights":[]})";

std::string lines(std::initializer_list<std::string> parts) {
  std::string text;
  for (const std::string& part : parts) text += part + "\n";
  return text;
}

TEST(TraceTest, ReadsFreeSpacingAndALastLineWithoutNewline) {
  const TempDir dir;
  const std::string path =
      dir.write("t.jsonl",
                lines({kHeader, R"( { "weights" : [ [ 1 , 0 ] ] , "group":0, "step":0 , "ids":[[7,-1]]} )"}) +
                    R"({"step":1,"group":0,"ids":[],"weights":[]})");
  const Trace trace = read_trace(path);
  EXPECT_EQ(trace.steps[0][0].ids, (std::vector<std::int32_t>{7, -1}));
  EXPECT_EQ(trace.steps[0][0].weights, (std::vector<float>{1.0F, 0.0F}));
}

TEST(TraceTest, NamesLineAndColumnOfEveryMistake) {
  const TempDir dir;
  const std::string header_keys = "record, format, experts, topk, groups, steps, source";
  const auto header = [](std::string from, const std::string& to) {
    std::string text = kHeader;
    return text.replace(text.find(from), from.size(), to);
  };
  const std::pair<std::string, std::string> cases[] = {
      {"", "1:1: the file ends; expected the header of a trace"},
      {"[]\n", "1:1: expected an object with the keys " + header_keys},
      {"{\"record\":\"trace\",,\n", "1:19: not valid JSON; expected one object with the keys " + header_keys},
      {lines({header(R"("record":"trace")", R"("record":"result")")}),
       "1:11: \"record\": expected \"trace\""},
      {lines({header(R"("format":1)", R"("format":2)")}), "1:28: \"format\": expected an integer in [1, 1]"},
      {lines({header(R"("experts":8)", R"("experts":"8")")}),
       "1:40: \"experts\": expected an integer in [1, 2147483647]"},
      {lines({header(R"("topk":2)", R"("topk":9)")}), "1:49: \"topk\": expected an integer in [1, 8]"},
      {lines({header(R"("topk":2)", R"("topk":1.5)")}), "1:49: \"topk\": expected an integer in [1, 8]"},
      {lines({header(R"("topk":2,)", "")}), "1:1: key \"topk\" is missing"},
      {lines({header(R"("topk":2)", R"("topk":2,"top_k":2)")}),
       "1:51: unknown key \"top_k\"; allowed are " + header_keys},
      {lines({header(R"("source":"test")", R"("source":3)")}), "1:81: \"source\": expected a string"},
      {lines({kHeader}), "2:1: the file ends; expected step 0, group 0 of 2 steps with 1 groups"},
      {lines({kHeader, kStep0}), "3:1: the file ends; expected step 1, group 0 of 2 steps with 1 groups"},
      {lines({kHeader, kStep1}), "2:9: expected step 0, group 0 of 2 steps with 1 groups"},
      {lines({kHeader, kStep0, kStep1, kStep1}), "4:1: text after the last of 2 steps with 1 groups"},
      {lines({kHeader, kStep0, ""}),
       "3:1: not valid JSON; expected one object with the keys step, group, ids, weights"},
      {lines({kHeader, R"({"step":0,"group":1,"ids":[],"weights":[]})"}),
       "2:19: expected step 0, group 0 of 2 steps with 1 groups"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":7,"weights":[]})"}),
       "2:27: \"ids\": expected an array with an array per token"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1],[2]],"weights":[]})"}),
       "2:34: \"ids\", token 1: expected an array of 2 expert ids"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1],[2,"3"]],"weights":[]})"}),
       "2:37: \"ids\", token 1, k 1: expected one of expert ids"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,9999999999]],"weights":[[1,1]]})"}),
       "2:31: \"ids\", token 0, k 1: expected one of expert ids"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1],[2,8]],"weights":[[1,1],[1,1]]})"}),
       "2:37: \"ids\": token 1, k 1: expert 8 is outside [-1, 7]"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1],[2,2]],"weights":[[1,1],[1,1]]})"}),
       "2:37: \"ids\": token 1, k 1: expert 2 is chosen twice; the experts of a token must be distinct"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1]],"weights":[[1,null]]})"}),
       "2:49: \"weights\", token 0, k 1: expected one of weights"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1]],"weights":[[1,1e39]]})"}),
       "2:49: \"weights\": token 0, k 1: weight inf is not finite; weights are finite float32 values"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1]],"weights":[[1,1e999]]})"}),
       "2:1: holds a number too large for a double"},
      {lines({kHeader, R"({"step":0,"group":0,"ids":[[0,1]],"weights":[]})"}),
       "2:45: \"weights\" has 0 tokens; \"ids\" has 1"},
  };
  int number = 0;
  for (const auto& [text, message] : cases) {
    const std::string path = dir.write(std::to_string(number++) + ".jsonl", text);
    expect_error(Errc::io, path + ":" + message, [&] { (void)read_trace(path); });
  }
  expect_error(Errc::io, dir.file("none") + ": cannot open: No such file or directory",
               [&] { (void)read_trace(dir.file("none")); });
}

TEST(TraceTest, ShippedExampleIsReadable) {
  const Trace trace = read_trace("data/traces/example.jsonl");
  EXPECT_EQ(trace.num_experts, 8);
  EXPECT_EQ(trace.top_k, 2);
  EXPECT_FALSE(trace.source.empty());
}

TEST(JsonPositionTest, FindsNestedValuesPastStringsAndObjects) {
  const std::string line = R"({"a":"}],\"{","b":{"c":[1,[2]]}, "d" : [ [1, "x,]"], [3 , 4] ] })";
  const auto column = [&](const std::string& text) { return static_cast<std::int64_t>(line.find(text)) + 1; };
  EXPECT_EQ(detail::json_column(line, "a"), 6);
  EXPECT_EQ(detail::json_column(line, "b"), column("{\"c\""));
  EXPECT_EQ(detail::json_column(line, "d", {1}), column("[3"));
  EXPECT_EQ(detail::json_column(line, "d", {1, 1}), column("4]"));
  EXPECT_EQ(detail::json_column(line, "d", {0, 1}), column("\"x,]"));
  EXPECT_EQ(detail::json_column(line, "d", {7, 0}), column("[ [1"));  // The last step that exists
  EXPECT_EQ(detail::json_column(line, "none"), 1);
  EXPECT_EQ(detail::json_key_column(line, "d"), column("\"d\""));
}

}  // namespace
}  // namespace shunt

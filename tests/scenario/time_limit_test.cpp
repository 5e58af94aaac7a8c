#include <shunt/scenario/time_limit.h>

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <shunt/core/error.h>

namespace shunt::scenario {
namespace {

std::string read(const std::string& text, TimeStyle style) {
  return format_time_limit(parse_time_limit(text, style));
}

std::string refusal(const std::string& text, TimeStyle style = TimeStyle::strict) {
  try {
    return "accepted as " + read(text, style);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::invalid_argument) << text;
    return error.what();
  }
}

TEST(TimeLimitTest, ReadsWhatCloudAiReads) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"10m", "00:10:00"}, {"1h", "01:00:00"},           {"2d", "2-00:00:00"},  {"1w", "7-00:00:00"},
      {"30s", "00:00:30"}, {"1-12:30:45", "1-12:30:45"}, {"12:30", "12:30:00"}, {"00:30:00", "00:30:00"},
      {"10M", "00:10:00"}, {"10:00", "10:00:00"}};
  for (const auto& [text, expected] : cases) EXPECT_EQ(read(text, TimeStyle::cloudai), expected) << text;
  for (const char* text : {"30", "1-12", "1-12:30", "", "10x", "h", "1:2:3:4"})
    EXPECT_NE(refusal(text, TimeStyle::cloudai).find("allowed are"), std::string::npos) << text;
}

TEST(TimeLimitTest, ReadsWhatSlurmReads) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"30", "00:30:00"},     {"10:00", "00:10:00"},     {"1:30:00", "01:30:00"},
      {"1-12", "1-12:00:00"}, {"1-12:30", "1-12:30:00"}, {"1-12:30:45", "1-12:30:45"}};
  for (const auto& [text, expected] : cases) EXPECT_EQ(read(text, TimeStyle::slurm), expected) << text;
  for (const char* text : {"10m", "1:2:3:4", "-1", "1-"})
    EXPECT_NE(refusal(text, TimeStyle::slurm).find("allowed are"), std::string::npos) << text;
}

TEST(TimeLimitTest, RefusesWhatTheTwoReadDifferently) {
  const std::string why = refusal("10:00");
  EXPECT_NE(why.find("CloudAI reads 10:00:00"), std::string::npos) << why;
  EXPECT_NE(why.find("Slurm reads 00:10:00"), std::string::npos) << why;
  EXPECT_EQ(read("30", TimeStyle::strict), "00:30:00") << "only Slurm reads it";
  EXPECT_EQ(read("2d", TimeStyle::strict), "2-00:00:00") << "only CloudAI reads it";
  EXPECT_EQ(read("01:00:00", TimeStyle::strict), "01:00:00") << "both read it alike";
}

TEST(TimeLimitTest, RefusesNoTimeAndNumbersWithoutEnd) {
  EXPECT_NE(refusal("00:00:00").find("at least one second"), std::string::npos);
  EXPECT_NE(refusal("0m").find("at least one second"), std::string::npos);
  EXPECT_NE(refusal("99999999999999999999s").find("allowed are"), std::string::npos);
}

}  // namespace
}  // namespace shunt::scenario

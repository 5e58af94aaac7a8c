#include <gtest/gtest.h>

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>

#include <shunt/core/error.h>
#include <shunt/core/record.h>

namespace shunt {
namespace {

std::string json_of(RecordValue value) {
  Record record("r");
  record.set("v", std::move(value));
  const std::string line = record.to_json();
  const std::string start = R"({"record":"r","v":)";
  EXPECT_EQ(line.substr(0, start.size()), start);
  EXPECT_EQ(line.back(), '}');
  return line.substr(start.size(), line.size() - start.size() - 1);
}

TEST(RecordTest, KeepsKeysInTheOrderOfTheirFirstUse) {
  Record record("result");
  record.set("b", std::int64_t{1}).set("a", "x").set("b", true);
  EXPECT_EQ(record.to_json(), R"({"record":"result","b":true,"a":"x"})");
  ASSERT_NE(record.find("a"), nullptr);
  EXPECT_EQ(std::get<std::string>(*record.find("a")), "x");
  EXPECT_EQ(record.find("c"), nullptr);
}

TEST(RecordTest, WritesNumbersShortestRoundTripAndNanAsNull) {
  EXPECT_EQ(json_of(0.1), "0.1");
  EXPECT_EQ(json_of(1e300), "1e+300");
  EXPECT_EQ(json_of(-2.5), "-2.5");
  EXPECT_EQ(std::stod(json_of(1.0 / 3)), 1.0 / 3);
  EXPECT_EQ(json_of(std::nan("")), "null");
  EXPECT_EQ(json_of(std::numeric_limits<double>::infinity()), "null");
  EXPECT_EQ(json_of(std::monostate()), "null");
  EXPECT_EQ(json_of(std::numeric_limits<std::int64_t>::min()), "-9223372036854775808");
}

TEST(RecordTest, WritesLists) {
  EXPECT_EQ(json_of(std::vector<double>{1, 0.5, std::nan("")}), "[1,0.5,null]");
  EXPECT_EQ(json_of(std::vector<std::int64_t>{}), "[]");
  EXPECT_EQ(json_of(std::vector<std::string>{"a", "b\""}), R"(["a","b\""])");
}

TEST(RecordTest, EscapesWhatJsonForbids) {
  EXPECT_EQ(json_of(std::string("q\"b\\n\nt\tr\r")), R"("q\"b\\n\nt\tr\r")");
  EXPECT_EQ(json_of(std::string("\x01\x1f\x7f", 3)), R"("\u0001\u001f\u007f")");
  EXPECT_EQ(json_of(std::string("\0x", 2)), R"("\u0000x")");
  Record record("r");
  record.set("k\"", true);
  EXPECT_EQ(record.to_json(), R"({"record":"r","k\"":true})");
}

TEST(RecordTest, KeepsUtf8AndReplacesWhatIsNot) {
  const std::string good = "\xc2\xb5s \xe2\x82\xac \xf0\x9f\x9a\x82";
  EXPECT_EQ(json_of(good), '"' + good + '"');
  EXPECT_EQ(json_of(std::string("a\xff"
                                "b")),
            R"("a\ufffdb")");
  EXPECT_EQ(json_of(std::string("\xc0\x80")), R"("\ufffd\ufffd")");            // overlong
  EXPECT_EQ(json_of(std::string("\xed\xa0\x80")), R"("\ufffd\ufffd\ufffd")");  // surrogate
  EXPECT_EQ(json_of(std::string("\xe2\x82")), R"("\ufffd\ufffd")");            // cut short
}

TEST(RecordTest, DescribesTheRunInItsContext) {
  const Record record = context_record({"shunt", "bench", "it's", "a b", "--tokens=1,4"});
  EXPECT_EQ(record.to_json().rfind(R"({"record":"context","format":1,)", 0), 0U);
  EXPECT_EQ(std::get<std::string>(*record.find("command")), R"(shunt bench 'it'\''s' 'a b' --tokens=1,4)");
  EXPECT_EQ(std::get<std::string>(*record.find("version")), version());
  for (const char* key :
       {"git_revision", "date", "host", "cpu_model", "kernel", "cores", "memory_total_bytes", "compiler"})
    EXPECT_NE(record.find(key), nullptr) << key;
  EXPECT_EQ(std::get<std::string>(*record.find("date")).size(), std::string("2026-01-01T00:00:00Z").size());
}

TEST(VersionTest, NamesAReleaseAndARevision) {
  EXPECT_EQ(std::count(version(), version() + std::string(version()).size(), '.'), 2);
  EXPECT_FALSE(std::string(git_revision()).empty());
}

class WriteNewFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "shunt-record-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  [[nodiscard]] static std::string content(const std::string& path) {
    std::ifstream in(path);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  [[nodiscard]] std::ptrdiff_t files() const {
    return std::distance(std::filesystem::directory_iterator(folder_), {});
  }
  std::string folder_;
};

TEST_F(WriteNewFileTest, WritesTheWholeTextAndLeavesNothingElse) {
  const std::string text(100000, 'x');
  write_new_file(folder_ + "/out.jsonl", text);
  EXPECT_EQ(content(folder_ + "/out.jsonl"), text);
  EXPECT_EQ(files(), 1);
}

TEST_F(WriteNewFileTest, RefusesToOverwrite) {
  const std::string path = folder_ + "/out.jsonl";
  write_new_file(path, "first");
  try {
    write_new_file(path, "second");
    FAIL() << "the file was overwritten";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::io);
    EXPECT_EQ(error.what(), path + " exists already; nothing is overwritten, name another file");
  }
  EXPECT_EQ(content(path), "first");
  EXPECT_EQ(files(), 1);
}

TEST_F(WriteNewFileTest, NamesPathAndReasonWhenTheFolderIsMissing) {
  const std::string path = folder_ + "/missing/out.jsonl";
  try {
    write_new_file(path, "x");
    FAIL() << "a file was written into a folder that does not exist";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Errc::io);
    EXPECT_EQ(error.what(), "cannot write " + path + ": No such file or directory");
  }
}

}  // namespace
}  // namespace shunt

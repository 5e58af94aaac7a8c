#include "text.h"

#include <gtest/gtest.h>

#include "expect_error.h"
#include "temp_dir.h"

namespace shunt::detail {
namespace {

TEST(TextTest, SplitsWordsAndMarks) {
  const Text text = split_words("In the 2nd\tbeginning, THE W\xc3\xb6rd:\r\n'the");
  EXPECT_EQ(text.words,
            (std::vector<std::string>{"in", "the", "2nd", "beginning", ",", "w\xc3\xb6rd", ":", "'"}));
  EXPECT_EQ(text.tokens, (std::vector<std::int32_t>{0, 1, 2, 3, 4, 1, 5, 6, 7, 1}));
  EXPECT_TRUE(split_words("").tokens.empty());
  EXPECT_TRUE(split_words(" \n\t").tokens.empty());
}

TEST(TextTest, RefusesFileWithoutWords) {
  const test::TempDir dir;
  const std::string path = dir.write("blank.txt", " \n ");
  test::expect_error(Errc::io, path + ": holds no words (3 bytes); routing from text needs at least one",
                     [&] { (void)read_text(path); });
  test::expect_error(Errc::io, dir.file("none.txt") + ": cannot open: No such file or directory",
                     [&] { (void)read_text(dir.file("none.txt")); });
}

TEST(TextTest, RefusesDirectory) {
  const test::TempDir dir;
  test::expect_error(Errc::io, dir.path() + ": cannot read: Is a directory",
                     [&] { (void)read_text(dir.path()); });
}

TEST(TextTest, ShippedTextHasTheFrequenciesOfLanguage) {
  const Text text = read_text("data/text/kjv.txt");
  EXPECT_GT(text.tokens.size(), 60'000U);
  EXPECT_GT(text.words.size(), 3'000U);
  std::vector<std::int64_t> counts(text.words.size());
  for (const std::int32_t token : text.tokens) ++counts[static_cast<std::size_t>(token)];
  // "the", "and" and the comma each make up more than 5 % of it.
  std::int64_t frequent = 0;
  for (const std::int64_t count : counts)
    frequent += count * 20 > static_cast<std::int64_t>(text.tokens.size()) ? 1 : 0;
  EXPECT_EQ(frequent, 3);
}

TEST(TextTest, TopKSortsByLogitThenIndex) {
  const std::vector<float> logits = {1.0F, 3.0F, 3.0F, -2.0F, 5.0F, 3.0F};
  std::vector<std::int32_t> ids(3);
  top_k(logits, ids);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{4, 1, 2}));
  ids.resize(6);
  top_k(logits, ids);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{4, 1, 2, 5, 0, 3}));
}

TEST(TextTest, GateDependsOnWordAndSeed) {
  std::vector<float> a(64), b(64), c(64), d(64);
  TextGate(64, 1).word_logits("heaven", a);
  TextGate(64, 1).word_logits("heaven", b);
  TextGate(64, 1).word_logits("earth", c);
  TextGate(64, 2).word_logits("heaven", d);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  EXPECT_NE(a, d);
  std::vector<float> few(16);
  TextGate(16, 1).word_logits("heaven", few);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), a.begin()));
}

}  // namespace
}  // namespace shunt::detail

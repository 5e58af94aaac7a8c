#include <shunt/core/child.h>

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <stdexcept>
#include <string>

namespace shunt {
namespace {

using namespace std::chrono_literals;

TEST(ChildTest, GivesTheWholeAnswer) {
  EXPECT_EQ(ask_in_child([] { return std::string("yes"); }, 10s), "yes");
  EXPECT_EQ(ask_in_child([] { return std::string(); }, 10s), "");
  const std::string more_than_a_pipe_holds(1 << 20, 'x');
  EXPECT_EQ(ask_in_child([&] { return more_than_a_pipe_holds; }, 10s), more_than_a_pipe_holds);
}

TEST(ChildTest, ChangesNothingHere) {
  int value = 1;
  EXPECT_EQ(ask_in_child([&] { return std::to_string(++value); }, 10s), "2");
  EXPECT_EQ(value, 1);
}

TEST(ChildTest, HasNoAnswerOfAChildThatDies) {
  EXPECT_EQ(ask_in_child([]() -> std::string { _exit(0); }, 10s), std::nullopt);
  EXPECT_EQ(ask_in_child([]() -> std::string { throw std::runtime_error("no"); }, 10s), std::nullopt);
  EXPECT_EQ(ask_in_child(
                []() -> std::string {
                  kill(getpid(), SIGKILL);
                  return "after its death";
                },
                10s),
            std::nullopt);
}

TEST(ChildTest, KillsAChildThatTakesTooLong) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(ask_in_child(
                [] {
                  sleep(600);
                  return std::string("late");
                },
                20ms),
            std::nullopt);
  EXPECT_LT(std::chrono::steady_clock::now() - start, 300s);
}

}  // namespace
}  // namespace shunt

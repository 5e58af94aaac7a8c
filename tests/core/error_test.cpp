#include <gtest/gtest.h>

#include <set>
#include <string>

#include <shunt/core/error.h>

namespace shunt {
namespace {

constexpr Errc kAll[] = {Errc::invalid_argument, Errc::invalid_state, Errc::out_of_memory, Errc::overflow,
                         Errc::timeout,          Errc::peer_lost,     Errc::unavailable,   Errc::io,
                         Errc::check_failed,     Errc::internal};

TEST(ErrorTest, NamesEveryCodeDifferently) {
  std::set<std::string> names;
  for (const Errc code : kAll) names.insert(errc_name(code));
  EXPECT_EQ(names.size(), std::size(kAll));
  EXPECT_EQ(names.count("unknown"), 0U);
  EXPECT_STREQ(errc_name(Errc::peer_lost), "peer_lost");
}

TEST(ErrorTest, EndsWithTwoForWhatTheUserCanMend) {
  std::set<Errc> mendable;
  for (const Errc code : kAll) {
    if (exit_status(code) == 2)
      mendable.insert(code);
    else
      EXPECT_EQ(exit_status(code), 1) << errc_name(code);
  }
  EXPECT_EQ(mendable, (std::set<Errc>{Errc::invalid_argument, Errc::io, Errc::out_of_memory, Errc::overflow,
                                      Errc::unavailable}));
}

TEST(ErrorTest, CarriesCodeAndMessage) {
  const Error error(Errc::timeout, "rank 1 waited");
  EXPECT_EQ(error.code(), Errc::timeout);
  EXPECT_STREQ(error.what(), "rank 1 waited");
}

}  // namespace
}  // namespace shunt

#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <functional>

#include <shunt/core/error.h>

#include "pack_fixture.h"

namespace shunt::test {
namespace {

/// Exit status of `body` in a child: pack_kernels() decides once per process.
int in_child(const char* forced, const std::function<int()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    if (forced == nullptr)
      unsetenv("SHUNT_FORCE_ISA");
    else
      setenv("SHUNT_FORCE_ISA", forced, 1);
    int status = 90;
    try {
      status = body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      status = 91;
    }
    _exit(status);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(PackDispatchTest, PrintsWhichInstructionSetsRun) {
  std::string names;
  for (const Isa isa : available_isas()) names += std::string(" ") + isa_name(isa);
  std::printf("[ kernels  ] tested here:%s\n", names.c_str());
  ASSERT_FALSE(available_isas().empty());
  EXPECT_EQ(available_isas().front(), Isa::scalar);
}

TEST(PackDispatchTest, GivesEachAvailableTableUnderItsOwnName) {
  for (const Isa isa : available_isas()) EXPECT_EQ(pack_kernels(isa).isa, isa);
}

TEST(PackDispatchTest, RefusesATableThatIsNotAvailable) {
  for (const Isa isa : {Isa::avx2, Isa::avx512, Isa::neon}) {
    bool available = false;
    for (const Isa candidate : available_isas()) available = available || candidate == isa;
    if (available) continue;
    try {
      static_cast<void>(pack_kernels(isa));
      FAIL() << isa_name(isa) << " was given out";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Errc::unavailable);
      EXPECT_NE(std::string(error.what()).find(isa_name(isa)), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("scalar"), std::string::npos) << error.what();
    }
  }
}

TEST(PackDispatchTest, TakesTheFastestTableUnlessOneIsForced) {
  const Isa fastest = available_isas().back();
  EXPECT_EQ(in_child(nullptr, [&] { return pack_kernels().isa == fastest ? 0 : 1; }), 0);
  EXPECT_EQ(in_child("", [&] { return pack_kernels().isa == fastest ? 0 : 1; }), 0);
  for (const Isa isa : available_isas())
    EXPECT_EQ(in_child(isa_name(isa), [&] { return pack_kernels().isa == isa ? 0 : 1; }), 0) << isa_name(isa);
}

TEST(PackDispatchTest, SaysWhatIsAllowedWhenTheForcedNameIsUnknown) {
  EXPECT_EQ(in_child("sse9",
                     [] {
                       try {
                         static_cast<void>(pack_kernels());
                       } catch (const Error& error) {
                         const std::string text = error.what();
                         const bool complete =
                             text.find("SHUNT_FORCE_ISA is \"sse9\"; allowed here: scalar") == 0;
                         return complete && error.code() == Errc::invalid_argument ? 0 : 1;
                       }
                       return 2;
                     }),
            0);
}

}  // namespace
}  // namespace shunt::test

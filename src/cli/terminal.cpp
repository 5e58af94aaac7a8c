#include "terminal.h"

#include <unistd.h>

#include <cstdio>

#include <fmt/format.h>

namespace shunt::cli {
namespace {

constexpr const char* kClearLine = "\r\x1b[K";

void show_progress(double share, const std::string& what) {
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(share * kWidth);
  fmt::print(stderr, "{}[{:=<{}}{:<{}}] {:3.0f} % {}", kClearLine, "", filled, "", kWidth - filled,
             share * 100, share < 1 ? what : "");
  if (share >= 1) fmt::print(stderr, "{}", kClearLine);
  std::fflush(stderr);
}

}  // namespace

bench::BenchOutput terminal_output(bool quiet) {
  const bool terminal = isatty(STDERR_FILENO) == 1 && !quiet;
  bench::BenchOutput output;
  if (terminal) output.progress = show_progress;
  output.text = [terminal](const std::string& text) {
    if (terminal) fmt::print(stderr, "{}", kClearLine);
    fmt::print("{}", text);
    std::fflush(stdout);
  };
  return output;
}

}  // namespace shunt::cli

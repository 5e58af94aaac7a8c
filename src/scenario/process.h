#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace shunt::scenario {

struct ProcessStart {
  std::vector<std::string> words;
  std::string folder;  ///< working directory; stdout.txt and stderr.txt go there
  std::vector<std::pair<std::string, std::string>> variables;
};

/// Starts a program as the first of a process group of its own, with no input.
/// Errors: Errc::unavailable where there is no such program, Errc::io for its files.
[[nodiscard]] pid_t start_process(const ProcessStart& start);

/// What a program prints, both streams apart. Status 127 where there is none, 124 where it took longer than the limit.
struct Output {
  int status = 127;
  std::string out;
  std::string err;
};
[[nodiscard]] Output output_of(const std::vector<std::string>& words, std::chrono::milliseconds limit);

}  // namespace shunt::scenario

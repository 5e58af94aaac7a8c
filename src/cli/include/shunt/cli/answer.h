#pragma once

#include <string>
#include <vector>

namespace shunt::cli {

/// What a command of the planner printed on standard output, and the status that it ended with.
struct Answer {
  std::string text;
  int status = 0;
};

/// `shunt ARGUMENTS` without a process of its own, for the commands of the planner: plan ..., predict ....
/// Threads: any number at once.
/// Errors:  those of the command; also Errc::invalid_argument with its sentence where it refuses the arguments, and for
///          --help, which is no answer.
[[nodiscard]] Answer answer(const std::vector<std::string>& arguments);

}  // namespace shunt::cli

#pragma once

#include <string>
#include <vector>

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace shunt::cli {

/// The subcommand that was given, whole: "shunt plan memory".
[[nodiscard]] std::string command_name(const CLI::App& root);

/// What is wrong with the first option or subcommand of a command line that `root` does not know, with the nearest name
/// that it does know, as one sentence; empty where all are known. `arguments` begins with the program.
[[nodiscard]] std::string suggestion(const CLI::App& root, const std::vector<std::string>& arguments);

/// What is said of a command line that CLI11 refuses, as one sentence.
[[nodiscard]] std::string refusal(const CLI::App& root, const std::vector<std::string>& arguments,
                                  const CLI::ParseError& error);

}  // namespace shunt::cli

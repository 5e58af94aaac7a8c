#include <shunt/cli/answer.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/core/error.h>

#include "commands.h"
#include "output.h"
#include "suggest.h"

namespace shunt::cli {

Answer answer(const std::vector<std::string>& arguments) {
  CLI::App app;
  app.name("shunt");
  app.require_subcommand(1);
  Command command;
  add_plan(app, command);
  add_predict(app, command);
  std::vector<std::string> words{"shunt"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() != 0) throw Error(Errc::invalid_argument, refusal(app, words, error));
    throw Error(Errc::invalid_argument, fmt::format("{} --help is for the command line", command_name(app)));
  }
  Answer result;
  const Captured captured(result.text);
  if (command) result.status = command();
  return result;
}

}  // namespace shunt::cli

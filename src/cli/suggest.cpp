#include "suggest.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/core/nearest.h>

namespace shunt::cli {
namespace {

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty()) continue;  // Not for users
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) names.push_back("-" + name);
  }
  return names;
}

std::vector<std::string> command_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* child : app.get_subcommands(nullptr)) names.push_back(child->get_name());
  return names;
}

std::string full_name(const CLI::App& app) {
  const CLI::App* parent = app.get_parent();
  return parent == nullptr ? app.get_name() : fmt::format("{} {}", full_name(*parent), app.get_name());
}

std::string unknown(const char* what, const std::string& word, const CLI::App& app,
                    const std::vector<std::string>& names, bool list) {
  const std::string near = near_name(word, names);
  std::string text = fmt::format("{} is not {} of {}", word, what, full_name(app));
  if (!near.empty()) return text + fmt::format("; did you mean {}?", near);
  if (list) return text + fmt::format("; there are {}", fmt::join(names, ", "));
  return text + fmt::format(" ({} --help lists them)", full_name(app));
}

bool takes_positional(const CLI::App& app) {
  const auto options = app.get_options();
  return std::any_of(options.begin(), options.end(),
                     [](const CLI::Option* option) { return option->get_positional(); });
}

}  // namespace

std::string command_name(const CLI::App& root) {
  const CLI::App* app = &root;
  for (std::vector<CLI::App*> parsed = app->get_subcommands(); !parsed.empty();
       parsed = app->get_subcommands())
    app = parsed.front();
  return full_name(*app);
}

std::string suggestion(const CLI::App& root, const std::vector<std::string>& arguments) {
  const CLI::App* app = &root;
  for (std::size_t i = 1; i < arguments.size(); ++i) {
    const std::string& word = arguments[i];
    if (word == "--") return {};
    if (word.size() > 1 && word[0] == '-' && (word[1] == '-' || (word[1] >= 'a' && word[1] <= 'z'))) {
      const std::size_t equals = word.find('=');
      const std::string name = word.substr(0, equals);
      // A short option may have its value in the same word.
      const CLI::Option* option = app->get_option_no_throw(name);
      if (option == nullptr && name[1] != '-') option = app->get_option_no_throw(name.substr(0, 2));
      if (option == nullptr) return unknown("an option", name, *app, option_names(*app), false);
      const bool apart = equals == std::string::npos && (name[1] == '-' || name.size() == 2);
      if (apart && option->get_items_expected_max() > 0) ++i;
      continue;
    }
    const std::vector<std::string> commands = command_names(*app);
    if (std::find(commands.begin(), commands.end(), word) != commands.end()) {
      app = app->get_subcommand(word);
    } else if (!commands.empty()) {
      return unknown("a command", word, *app, commands, true);
    } else if (!takes_positional(*app)) {
      return fmt::format("{} is too much: {} takes options only", word, full_name(*app));
    }
  }
  return {};
}

std::string refusal(const CLI::App& root, const std::vector<std::string>& arguments,
                    const CLI::ParseError& error) {
  std::string hint = suggestion(root, arguments);
  if (!hint.empty()) return hint;
  const std::string name = command_name(root);
  return fmt::format("{}: {} ({} --help says more)", name, error.what(), name);
}

}  // namespace shunt::cli

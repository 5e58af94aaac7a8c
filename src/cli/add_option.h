#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/core/parse.h>
#include <shunt/transport/launch.h>

namespace shunt::cli {

/// Adds an option whose text `set` turns into a value. The errors of `set` pass through CLI11 unchanged.
template <class Set>
void add_text(CLI::App& app, const std::string& name, const std::string& help, const std::string& type,
              const Set& set) {
  app.add_option_function<std::string>(
         name, [name, set](const std::string& text) { set(name, text); }, help)
      ->type_name(type);
}

template <class T>
void add_whole(CLI::App& app, const std::string& name, const std::string& help, T& value, std::int64_t min,
               std::int64_t max) {
  add_text(app, name, help, "N", [&value, min, max](const std::string& option, const std::string& text) {
    value = static_cast<T>(parse_whole(option, text, min, max));
  });
}

/// Index of `text` in `names`. Errors: Errc::invalid_argument with the option, the nearest name where one is near, and
/// those there are.
inline std::size_t choose(const std::string& option, const std::string& text,
                          const std::vector<std::string>& names) {
  const auto found = std::find(names.begin(), names.end(), text);
  if (found != names.end()) return static_cast<std::size_t>(found - names.begin());
  throw Error(Errc::invalid_argument, fmt::format("{} \"{}\": {}", option, text, allowed_names(text, names)));
}

inline void add_list(CLI::App& app, const std::string& name, const std::string& help,
                     std::vector<std::string>& values) {
  app.add_option_function<std::vector<std::string>>(
         name,
         [name, &values](const std::vector<std::string>& given) {
           values.clear();
           for (const std::string& text : given)
             for (std::string& part : split_list(name, text)) values.push_back(std::move(part));
         },
         help)
      ->type_name("NAME,...")
      ->take_all()
      ->expected(1, -1)
      ->allow_extra_args(false);
}

/// --rank-mode, for tests and sanitizers; --help does not show it.
inline void add_rank_mode(CLI::App& app, RankMode& mode) {
  add_text(app, "--rank-mode", "", "processes|threads",
           [&mode](const std::string& option, const std::string& text) {
             if (text != "processes" && text != "threads")
               throw Error(
                   Errc::invalid_argument,
                   fmt::format("{}: \"{}\" is not allowed; allowed: processes, threads", option, text));
             mode = text == "threads" ? RankMode::threads : RankMode::processes;
           });
  app.get_option("--rank-mode")->group("");
}

}  // namespace shunt::cli

#include <cstdio>
#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/doctor.h>

#include "commands.h"

namespace shunt::cli {

void add_doctor(CLI::App& parent, Command& command) {
  CLI::App* app = parent.add_subcommand("doctor", "What this machine can run, what is missing, and why");
  const auto json = std::make_shared<bool>(false);
  app->add_flag("--json", *json, "JSON Lines instead of text");
  app->callback([&command, json] {
    command = [json] {
      const std::vector<Record> records = bench::examine_machine();
      if (!*json) fmt::print("{}", bench::format_examination(records));
      for (std::size_t i = 0; *json && i < records.size(); ++i) fmt::print("{}\n", records[i].to_json());
      return 0;
    };
  });
}

}  // namespace shunt::cli

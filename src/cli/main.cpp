#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/core/error.h>
#include <shunt/core/record.h>

#include "commands.h"
#include "suggest.h"

namespace {

int run(int argc, char** argv) {
  const std::vector<std::string> arguments(argv, argv + argc);
  CLI::App app{
      "Shunt moves the tokens of a mixture-of-experts model to their experts and back, and measures it."};
  app.name("shunt");
  app.require_subcommand(1);
  app.set_version_flag("--version", fmt::format("shunt {} ({})", shunt::version(), shunt::git_revision()));
  shunt::cli::Command command;
  CLI::App* bench = app.add_subcommand("bench", "Measure");
  bench->require_subcommand(1);
  shunt::cli::add_bench_alltoall(*bench, arguments, command);
  shunt::cli::add_bench_layer(*bench, arguments, command);
  shunt::cli::add_bench_overlap(*bench, arguments, command);
  shunt::cli::add_bench_pack(*bench, arguments, command);
  shunt::cli::add_bench_routing(*bench, arguments, command);
  shunt::cli::add_bench_transport(*bench, arguments, command);
  shunt::cli::add_doctor(app, command);
  shunt::cli::add_plan(app, command);
  shunt::cli::add_calibrate(app, command);
  shunt::cli::add_predict(app, command);
  shunt::cli::add_scenario(app, command);
  shunt::cli::add_sweep(app, arguments, command);
  shunt::cli::add_trace(app, arguments, command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // CLI11 has codes of its own; here 0 is help and version, and 2 whatever the user can mend.
    if (error.get_exit_code() == 0) return app.exit(error);
    const bool all_known = shunt::cli::suggestion(app, arguments).empty();
    fmt::print(stderr, "{}{}\n", all_known ? "" : "shunt: ", shunt::cli::refusal(app, arguments, error));
    return 2;
  }
  return command ? command() : 2;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const shunt::bench::RankFailure& failure) {
    fmt::print(stderr, "shunt: {}\n", failure.what());
    return failure.status();
  } catch (const shunt::Error& error) {
    fmt::print(stderr, "shunt: {}\n", error.what());
    return shunt::exit_status(error.code());
  } catch (const std::exception& error) {
    fmt::print(stderr, "shunt: {}\n", error.what());
    return 1;
  }
}

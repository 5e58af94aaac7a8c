#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/transport_bench.h>
#include <shunt/core/error.h>

#include "add_option.h"
#include "commands.h"
#include "terminal.h"

namespace shunt::cli {
namespace {

using bench::TransportBenchOptions;

struct Typed {
  TransportBenchOptions options;
  bool quiet = false;
};

int run(const Typed& typed, const std::vector<std::string>& arguments) {
  const bench::TransportBenchReport report =
      bench::run_transport_bench(typed.options, arguments, terminal_output(typed.quiet));
  if (report.failed && !report.leads) return 1;
  if (report.failed)
    throw Error(Errc::check_failed,
                "payloads arrived wrong; the lines above that begin with # wrong say which");
  return 0;
}

void add_size(CLI::App& app, const std::string& names, const std::string& name, const std::string& help,
              std::int64_t& value) {
  app.add_option_function<std::string>(
         names, [name, &value](const std::string& text) { value = bench::parse_size(name, text); }, help)
      ->type_name("BYTES");
}

}  // namespace

void add_bench_transport(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "transport",
      "Latency and bandwidth of puts, signals and collectives by message size, every payload checked");
  const auto typed = std::make_shared<Typed>();
  TransportBenchOptions& o = typed->options;
  add_size(*app, "-b,--min-bytes", "--min-bytes", "Smallest size (default 8), with K, M or G", o.min_bytes);
  add_size(*app, "-e,--max-bytes", "--max-bytes", "Largest size (default 4M), up to 1G", o.max_bytes);
  app->add_option_function<std::string>(
         "-f,--factor",
         [&o](const std::string& text) { o.factor = bench::parse_whole("--factor", text, 2, 1024); },
         "Each size is the last one times this (default 2)")
      ->type_name("N");
  add_list(*app, "--ops", fmt::format("Of {} (default all)", fmt::join(bench::transport_operations(), ", ")),
           o.ops);
  add_whole(*app, "--ranks", "Ranks on this machine (default 2, or those of the launcher)", o.ranks, 1, 1024);
  add_whole(*app, "--nodes", "Nodes that this machine pretends to be (default 1); divides the ranks", o.nodes,
            1, 1024);
  add_list(*app, "--transport", "One or several, measured in turns; see shunt doctor", o.transports);
  app->add_option("--provider", o.provider, "Of ofi, such as \"tcp;ofi_rxm\" (default: the best one here)");
  add_whole(*app, "--window", "Puts under way at once in the bandwidths (default 64; at most 16 MiB)",
            o.window, 1, 1 << 16);
  add_whole(*app, "--warmup", "Untimed iterations at the start of a block (default 2)", o.warmup, 0,
            1'000'000);
  add_whole(*app, "--iterations", "Timed iterations per block, up to 500 (default: what fits 4 ms)",
            o.iterations, 1, 500);
  add_whole(*app, "--rounds", "Blocks of each line in one placement class (default 10)", o.rounds, 1,
            100'000);
  add_text(*app, "--max-seconds", "Longest measuring time over all transports (default 60)", "SECONDS",
           [&o](const std::string& option, const std::string& text) {
             o.max_seconds = bench::parse_number(option, text, 0.1, 1e6);
           });
  add_text(*app, "--seed", "Of the order of blocks (default 1)", "N",
           [&o](const std::string& option, const std::string& text) {
             o.seed = static_cast<std::uint64_t>(bench::parse_whole(option, text, 0, INT64_MAX));
           });
  app->add_flag("--check,!--no-check", o.check, "New bytes in every payload, and compare them (default)");
  app->add_option("--tsv", o.tsv, "Table file, with every placement class; never overwritten");
  app->add_option("--jsonl", o.jsonl, "Record file; never overwritten");
  add_whole(*app, "--deadline", "Milliseconds a rank waits for another (default 30000)", o.deadline_ms, 1,
            86'400'000);
  app->add_flag("--quiet", typed->quiet, "No progress bar");
  add_rank_mode(*app, o.mode);
  app->callback(
      [&command, typed, &arguments] { command = [typed, &arguments] { return run(*typed, arguments); }; });
}

}  // namespace shunt::cli

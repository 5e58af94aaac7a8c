#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/bench/report.h>
#include <shunt/core/error.h>

#include "add_option.h"
#include "commands.h"
#include "terminal.h"

namespace shunt::cli {
namespace {

using bench::AllToAllBenchOptions;

/// Options as they were typed; the bench module says what is allowed.
struct Typed {
  AllToAllBenchOptions options;
  bool list = false;
  bool quiet = false;
};

int run(const Typed& typed, const std::vector<std::string>& arguments) {
  if (typed.list) {
    fmt::print("{}", bench::format_methods(bench::device_methods(typed.options.device)));
    return 0;
  }
  const bench::AllToAllBenchReport report =
      bench::run_alltoall_bench(typed.options, arguments, terminal_output(typed.quiet));
  if (report.failed && report.leads)
    throw Error(Errc::check_failed, "a method delivered wrong data; the tables above say which and where");
  return report.status;
}

}  // namespace

void add_bench_alltoall(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "alltoall", "Which dispatch and combine method is fastest here, phase by phase, every payload checked");
  const auto typed = std::make_shared<Typed>();
  AllToAllBenchOptions& o = typed->options;
  add_whole(*app, "--ranks", "Ranks on this machine, whatever a launcher says (default: the job's, else 2)",
            o.ranks, 1, 1024);
  add_whole(*app, "--nodes", "Nodes that these ranks pretend to be on (default 1)", o.nodes, 1, 1024);
  add_list(*app, "--preset", "Model shapes (default v2-lite,r1)", o.presets);
  add_whole(*app, "--experts", "Experts over all ranks", o.num_experts, 1, 1 << 20);
  add_whole(*app, "--topk", "Experts per token", o.top_k, 1, 1 << 20);
  add_whole(*app, "--hidden", "Elements per token", o.hidden, 1, std::int64_t{1} << 24);
  add_text(*app, "--tokens", "Tokens per rank (default 1,4,8,16,32,64,128; up to 8192)", "N,...",
           [&o](const std::string&, const std::string& text) { o.tokens = bench::parse_token_counts(text); });
  add_whole(*app, "--dp-size", "Consecutive ranks that hold the same tokens (default 1)", o.dp_size, 1, 1024);
  add_text(*app, "--device",
           "Where tokens lie and methods run (default cpu); auto: cuda where it can run. Where it cannot, "
           "the CPU is "
           "measured, and a line says why",
           "cpu|cuda|auto", [&o](const std::string&, const std::string& text) { o.device = text; });
  const std::string dtypes = "bfloat16|float16|float8_e4m3fn|float8_e5m2|float32";
  add_text(*app, "--in-dtype", "Of tokens (default bfloat16); fp8 has a scale per 128 elements", dtypes,
           [&o](const std::string&, const std::string& text) { o.in_dtype = parse_dtype(text); });
  add_text(*app, "--out-dtype", "Of results (default bfloat16)", "bfloat16|float16|float32",
           [&o](const std::string&, const std::string& text) { o.out_dtype = parse_dtype(text); });
  app->add_option(
         "--transport", o.transport,
         "How ranks reach each other (default auto: shm on one node, else mpi under an MPI launcher, else "
         "ofi); see shunt doctor")
      ->type_name("NAME");
  app->add_option("--provider", o.provider,
                  "Of ofi, such as tcp;ofi_rxm or verbs;ofi_rxm (default: the best)")
      ->type_name("NAME");
  add_text(*app, "--layout", "Of received rows (default packed)", "packed|padded",
           [&o](const std::string&, const std::string& text) { o.layout = bench::parse_layout(text); });
  add_whole(*app, "--alignment", "Rows to which each expert's start is aligned (default 1)", o.alignment, 1,
            4096);
  add_whole(*app, "--max-recv-rows", "Most rows a rank may receive (default: the worst case); bounds memory",
            o.max_recv_rows, 0, std::int64_t{1} << 40);
  app->add_option_function<std::vector<std::string>>(
         "--routing", [&o](const std::vector<std::string>& given) { o.routings = given; },
         "KIND[:ARGUMENT][+mask:SHARE][+uneven]: uniform, powerlaw:ALPHA, one, grouped:GROUPS,TOP, "
         "trace:FILE, text:FILE; "
         "may be repeated")
      ->type_name("ROUTING")
      ->take_all()
      ->expected(1, -1)
      ->allow_extra_args(false);
  app->add_option("--input", o.input, "Tokens and routing from DIR/{x,topk_idx,topk_weights}.npy")
      ->type_name("DIR");
  add_list(*app, "--methods", "Methods to run (default all but those of --peers); see --list", o.methods);
  app->add_flag("--peers", o.peers, "Also run the methods that open sockets (torch, simd/gloo)");
  add_whole(*app, "--warmup", "Untimed iterations at the start of a block (default 2)", o.warmup, 0,
            1'000'000);
  add_whole(*app, "--iterations", "Timed iterations per block, up to 500 (default: what fits 4 ms)",
            o.iterations, 1, 500);
  add_whole(*app, "--rounds", "Rounds in one placement class that a comparison needs (default 10)", o.rounds,
            1, 100'000);
  add_text(*app, "--max-seconds", "Longest measuring time over all points (default 150)", "SECONDS",
           [&o](const std::string& option, const std::string& text) {
             o.max_seconds = bench::parse_number(option, text, 0.1, 1e6);
           });
  add_text(*app, "--seed", "Of tokens, routing and order (default 1)", "N",
           [&o](const std::string& option, const std::string& text) {
             o.seed = static_cast<std::uint64_t>(bench::parse_whole(option, text, 0, INT64_MAX));
           });
  add_whole(*app, "--deadline", "Milliseconds a rank waits for another (default 30000)", o.deadline_ms, 1,
            86'400'000);
  app->add_option("--tsv", o.tsv,
                  "Table file (default data/<time>_unified_moe_separated.tsv); never overwritten");
  app->add_option("--jsonl", o.jsonl, "Record file (default: beside the table)");
  app->add_flag("--cold", o.cold, "cuda: fill the L2 cache with other data before each phase");
  app->add_flag("--graph", o.graph, "cuda: replay phases that need no host from a CUDA graph");
  add_text(*app, "--launch",
           "cuda: gated: phases that need no host are queued behind a gate that opens when every rank has "
           "queued its "
           "own, so that launches do not count (default); direct: they do",
           "gated|direct", [&o](const std::string& option, const std::string& text) {
             if (text != "gated" && text != "direct")
               throw Error(Errc::invalid_argument,
                           fmt::format("{}: \"{}\" is not allowed; allowed: gated, direct", option, text));
             o.gate = text == "gated";
           });
  add_whole(*app, "--max-blocks", "cuda: blocks of a launch (default: as many as fill the device)",
            o.max_blocks, 0, 1 << 20);
  app->add_option("--pplx-tsv", o.pplx_tsv, "Also the table of pplx-kernels' benchmark; never overwritten");
  app->add_flag("--inner-phases,!--no-inner-phases", o.inner_phases,
                "Also time the parts of dispatch and combine (default)");
  app->add_flag("--quiet", typed->quiet, "No progress bar");
  app->add_flag("--list", typed->list, "List the methods, what they are and why some are absent");
  add_rank_mode(*app, o.mode);
  app->callback(
      [&command, typed, &arguments] { command = [typed, &arguments] { return run(*typed, arguments); }; });
}

}  // namespace shunt::cli

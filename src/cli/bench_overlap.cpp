#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/overlap_bench.h>
#include <shunt/core/error.h>

#include "add_option.h"
#include "commands.h"
#include "terminal.h"

namespace shunt::cli {
namespace {

using bench::OverlapBenchOptions;

struct Typed {
  OverlapBenchOptions options;
  bool quiet = false;
};

int run(const Typed& typed, const std::vector<std::string>& arguments) {
  const bench::OverlapBenchReport report =
      bench::run_overlap_bench(typed.options, arguments, terminal_output(typed.quiet));
  if (report.failed && report.leads)
    throw Error(Errc::check_failed, "a payload or a product was wrong; the lines above say which and where");
  return report.status;
}

/// "auto", "N" or "M,N,K".
void set_gemm(OverlapBenchOptions& options, const std::string& option, const std::string& text) {
  options.gemm_rows = options.gemm_columns = options.gemm_depth = 0;
  if (text == "auto") return;
  const std::vector<std::string> parts = bench::split_list(option, text);
  if (parts.size() != 1 && parts.size() != 3)
    throw Error(
        Errc::invalid_argument,
        fmt::format("{}: \"{}\" is not allowed; allowed: auto, the columns N, or M,N,K", option, text));
  const auto size = [&](std::size_t i) { return bench::parse_whole(option, parts[i], 1, 1 << 18); };
  options.gemm_columns = size(parts.size() == 1 ? 0 : 1);
  if (parts.size() == 1) return;
  options.gemm_rows = size(0);
  options.gemm_depth = size(2);
}

}  // namespace

void add_bench_overlap(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "overlap", "How much of dispatch and combine hides behind a matrix product, everything checked");
  const auto typed = std::make_shared<Typed>();
  OverlapBenchOptions& o = typed->options;
  bench::AllToAllBenchOptions& points = o.points;
  points.tokens = {16, 128};
  points.presets = {};
  points.max_seconds = 60;
  add_text(*app, "--device", "Where tokens lie and products run (default auto: cuda where it can run)",
           "cpu|cuda|auto", [&o](const std::string&, const std::string& text) { o.device = text; });
  add_text(*app, "--gemm",
           "The product of each rank, once in each half: auto: M tokens, K hidden, N matched to the time of "
           "half of the communication (default); or N; or M,N,K",
           "auto|N|M,N,K",
           [&o](const std::string& option, const std::string& text) { set_gemm(o, option, text); });
  add_text(*app, "--gemm-dtype", "Of its factors (default float32); the result is float32",
           "float32|bfloat16",
           [&o](const std::string&, const std::string& text) { o.gemm_dtype = parse_dtype(text); });
  add_whole(*app, "--ranks", "Ranks on this machine, whatever a launcher says (default: the job's, else 2)",
            points.ranks, 1, 1024);
  add_whole(*app, "--nodes", "Nodes that these ranks pretend to be on (default 1)", points.nodes, 1, 1024);
  add_list(*app, "--preset", "Model shapes (default v2-lite,r1)", points.presets);
  add_whole(*app, "--experts", "Experts over all ranks", points.num_experts, 1, 1 << 20);
  add_whole(*app, "--topk", "Experts per token", points.top_k, 1, 1 << 20);
  add_whole(*app, "--hidden", "Elements per token", points.hidden, 1, 1 << 18);
  add_text(*app, "--tokens", "Tokens per rank (default 16,128; up to 8192)", "N,...",
           [&points](const std::string&, const std::string& text) {
             points.tokens = bench::parse_token_counts(text);
           });
  add_text(*app, "--in-dtype", "Of tokens (default bfloat16); fp8 has a scale per 128 elements",
           "bfloat16|float16|float8_e4m3fn|float8_e5m2|float32",
           [&points](const std::string&, const std::string& text) { points.in_dtype = parse_dtype(text); });
  add_text(*app, "--out-dtype", "Of results (default bfloat16)", "bfloat16|float16|float32",
           [&points](const std::string&, const std::string& text) { points.out_dtype = parse_dtype(text); });
  app->add_option("--transport", points.transport,
                  "How ranks reach each other (default auto); see shunt doctor")
      ->type_name("NAME");
  app->add_option("--provider", points.provider, "Of ofi, such as tcp;ofi_rxm (default: the best)")
      ->type_name("NAME");
  app->add_option_function<std::vector<std::string>>(
         "--routing", [&points](const std::vector<std::string>& given) { points.routings = given; },
         "As of bench alltoall (default uniform); may be repeated")
      ->type_name("ROUTING")
      ->take_all()
      ->expected(1, -1)
      ->allow_extra_args(false);
  add_whole(*app, "--warmup", "Untimed iterations at the start of a block (default 2)", points.warmup, 0,
            1'000'000);
  add_whole(*app, "--iterations", "Timed iterations per block, up to 500 (default: what fits 4 ms)",
            points.iterations, 1, 500);
  add_whole(*app, "--rounds", "Rounds in one placement class that a comparison needs (default 10)",
            points.rounds, 1, 100'000);
  add_text(*app, "--max-seconds", "Longest measuring time over all points (default 60)", "SECONDS",
           [&points](const std::string& option, const std::string& text) {
             points.max_seconds = bench::parse_number(option, text, 0.1, 1e6);
           });
  add_text(*app, "--seed", "Of tokens, routing and order (default 1)", "N",
           [&points](const std::string& option, const std::string& text) {
             points.seed = static_cast<std::uint64_t>(bench::parse_whole(option, text, 0, INT64_MAX));
           });
  add_whole(*app, "--deadline", "Milliseconds a rank waits for another (default 30000)", points.deadline_ms,
            1, 86'400'000);
  app->add_flag("--cold", points.cold, "cuda: fill the L2 cache with other data before each half");
  app->add_flag("--graph", points.graph, "cuda: replay each half from a CUDA graph");
  add_whole(*app, "--max-blocks",
            "cuda: blocks of a launch of dispatch and combine (default: as many as fill it)",
            points.max_blocks, 0, 1 << 20);
  app->add_option("--jsonl", o.jsonl, "Record file; never overwritten");
  app->add_flag("--quiet", typed->quiet, "No progress bar");
  add_rank_mode(*app, points.mode);
  app->callback(
      [&command, typed, &arguments] { command = [typed, &arguments] { return run(*typed, arguments); }; });
}

}  // namespace shunt::cli

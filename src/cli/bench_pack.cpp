#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/pack_bench.h>
#include <shunt/core/error.h>

#include "add_option.h"
#include "commands.h"
#include "terminal.h"

namespace shunt::cli {
namespace {

using bench::PackBenchOptions;

struct Typed {
  PackBenchOptions options;
  bool quiet = false;
};

int run(const Typed& typed, const std::vector<std::string>& arguments) {
  if (bench::run_pack_bench(typed.options, arguments, terminal_output(typed.quiet)).failed)
    throw Error(Errc::check_failed,
                "a device packed wrong; the lines above that begin with # wrong say what");
  return 0;
}

void add_dtype(CLI::App& app, const std::string& name, const std::string& help, const std::string& allowed,
               DType& value) {
  add_text(app, name, help, allowed,
           [&value](const std::string&, const std::string& text) { value = parse_dtype(text); });
}

}  // namespace

void add_bench_pack(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "pack", "Rows from expert ids, gather, scatter and combine on one device, every result checked");
  const auto typed = std::make_shared<Typed>();
  PackBenchOptions& o = typed->options;
  app->add_option("--device", o.device, "Where (default auto: cuda where it can run, else cpu)")
      ->type_name("cpu|cuda|auto");
  add_list(*app, "--preset", "Model shapes (default r1)", o.presets);
  add_whole(*app, "--experts", "Experts", o.num_experts, 1, 1 << 20);
  add_whole(*app, "--topk", "Experts per token", o.top_k, 1, 1 << 20);
  add_whole(*app, "--hidden", "Elements per token", o.hidden, 1, std::int64_t{1} << 24);
  add_text(*app, "--tokens", "Tokens (default 128,4096; up to 8192)", "N,...",
           [&o](const std::string&, const std::string& text) { o.tokens = bench::parse_token_counts(text); });
  const std::string wide = "bfloat16|float16|float32";
  add_dtype(*app, "--in-dtype", "Of tokens (default bfloat16)", wide, o.in_dtype);
  add_dtype(*app, "--payload", "Of rows (default: that of the tokens); fp8 has a scale per 128 elements",
            wide + "|float8_e4m3fn|float8_e5m2", o.payload);
  add_text(*app, "--scale", "Of fp8 rows (default float32)", "float32|ue8m0",
           [&o](const std::string& option, const std::string& text) {
             if (text != "float32" && text != "ue8m0")
               throw Error(Errc::invalid_argument,
                           fmt::format("{}: \"{}\" is not allowed; allowed: float32, ue8m0", option, text));
             o.scale = text == "ue8m0" ? ScaleType::ue8m0 : ScaleType::f32;
           });
  add_dtype(*app, "--out-dtype", "Of expert results and sums (default bfloat16)", wide, o.out_dtype);
  app->add_option_function<std::vector<std::string>>(
         "--routing", [&o](const std::vector<std::string>& given) { o.routings = given; },
         "As of bench alltoall (default uniform); may be repeated")
      ->type_name("ROUTING")
      ->take_all()
      ->expected(1, -1)
      ->allow_extra_args(false);
  add_whole(*app, "--warmup", "Untimed iterations of a phase (default 20)", o.warmup, 0, 1'000'000);
  add_whole(*app, "--iterations", "Timed ones (default 100)", o.iterations, 1, 1'000'000);
  app->add_flag("--cold", o.cold, "Write other memory between iterations, so that caches hold nothing");
  add_whole(*app, "--max-blocks", "Blocks of a launch on cuda (default: as many as fill the device)",
            o.max_blocks, 0, 1 << 20);
  add_text(*app, "--seed", "Of tokens and routing (default 1)", "N",
           [&o](const std::string& option, const std::string& text) {
             o.seed = static_cast<std::uint64_t>(bench::parse_whole(option, text, 0, INT64_MAX));
           });
  app->add_option("--jsonl", o.jsonl, "Record file; never overwritten");
  app->add_flag("--quiet", typed->quiet, "No progress bar");
  app->callback([&command, typed, &arguments, app] {
    // Rows are what the tokens are, unless told otherwise.
    if (app->count("--payload") == 0) typed->options.payload = typed->options.in_dtype;
    command = [typed, &arguments] { return run(*typed, arguments); };
  });
}

}  // namespace shunt::cli

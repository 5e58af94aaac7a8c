#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/layer_bench.h>
#include <shunt/core/error.h>

#include "add_option.h"
#include "commands.h"
#include "terminal.h"

namespace shunt::cli {
namespace {

struct Typed {
  bench::LayerBenchOptions options;
  bool quiet = false, forward_only = false;
  std::int64_t expand = 0;
};

void add_sizes(CLI::App& app, const std::shared_ptr<Typed>& typed) {
  bench::LayerPoint& point = typed->options.point;
  constexpr std::int64_t kMost = std::int64_t{1} << 20;
  add_whole(app, "--num-tokens,--tokens", "Tokens of each rank (default 8192)", point.tokens, 1,
            std::int64_t{1} << 30);
  add_whole(app, "--hidden-dim,--hidden", "Elements per token (default 1024)", point.hidden, 1, kMost);
  add_whole(app, "--ffn", "Inner elements of an expert (default 4 times hidden)", point.ffn, 1, kMost);
  add_whole(app, "--expand", "The same as a multiple of hidden", typed->expand, 1, 1024);
  add_whole(app, "--num-experts,--experts", "Experts over all ranks (default 32)", point.num_experts, 1,
            kMost);
  add_whole(app, "--top-k,--topk", "Experts per token (default 2)", point.top_k, 1, kMost);
  app.add_option("--strategy,--gate", point.gate, "A gate of docs/routing.md (default softk)")
      ->type_name("NAME");
  app.add_option("--activation", point.activation, "Of experts (default gelu)")
      ->type_name("gelu|silu|swiglu");
  app.add_flag("--bias", point.bias, "Experts have biases");
  add_whole(app, "--shared-experts", "Experts that every token gets besides (default 0)",
            point.shared_experts, 0, 1024);
  add_text(app, "--capacity-factor",
           "Of each expert's even share; what does not fit is dropped (default: nothing is)", "X",
           [&point](const std::string& option, const std::string& text) {
             point.capacity_factor = bench::parse_number(option, text, 1e-6, 1e6);
           });
}

void add_run(CLI::App& app, const std::shared_ptr<Typed>& typed) {
  bench::LayerPoint& point = typed->options.point;
  add_text(app, "--dtype", "Of tokens, rows and weights (default float32)", "float32|bfloat16",
           [&point](const std::string&, const std::string& text) { point.dtype = parse_dtype(text); });
  app.add_flag("--no-backward", typed->forward_only, "Measure the forward pass alone");
  add_whole(app, "--ranks", "Processes over which the experts are spread (default 1)", point.ranks, 1, 1024);
  add_whole(app, "--threads", "Of each rank, and of libtorch (default: the cores over the ranks)",
            point.threads, 1, 1024);
  add_list(app, "--impl", "shunt, torch (default shunt), in turn in one run", point.impls);
  app.add_option("--matmul", point.backend, "Who multiplies for shunt (default automatic)")
      ->type_name("automatic|onednn|own");
  add_text(app, "--device", "Where the layer is computed (default cpu)", "cpu",
           [](const std::string& option, const std::string& text) {
             if (text != "cpu")
               throw Error(Errc::invalid_argument,
                           fmt::format("{} \"{}\": the layer is computed on the CPU alone; allowed is cpu",
                                       option, text));
           });
  add_whole(app, "--seed", "Of tokens and weights (default 17)", point.seed, 0, INT64_MAX);
  add_whole(app, "--warmup", "Untimed iterations (default 1)", point.warmup, 0, 1'000'000);
  add_whole(app, "--iters,--iterations", "Timed iterations (default 20)", point.iterations, 1, 1'000'000);
  add_text(app, "--max-seconds", "Timed iterations end early after it, at least 3 are made (default 30)", "X",
           [&point](const std::string& option, const std::string& text) {
             point.max_seconds = bench::parse_number(option, text, 0, 1e6);
           });
  app.add_option("--jsonl,--out", typed->options.jsonl, "Record file; never overwritten")->type_name("FILE");
  app.add_flag("--quiet", typed->quiet, "No progress bar");
}

}  // namespace

void add_bench_layer(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "layer", "A whole MoE layer, forward and backward, in one process or over ranks, every part checked");
  const auto typed = std::make_shared<Typed>();
  add_sizes(*app, typed);
  add_run(*app, typed);
  app->callback([&command, typed, &arguments] {
    bench::LayerPoint& point = typed->options.point;
    if (typed->expand > 0 && point.ffn > 0)
      throw Error(Errc::invalid_argument, "--ffn and --expand say the same; give one of them");
    if (typed->expand > 0) point.ffn = typed->expand * point.hidden;
    point.backward = !typed->forward_only;
    command = [typed, &arguments] {
      if (bench::run_layer_bench(typed->options, arguments, terminal_output(typed->quiet)).failed)
        throw Error(Errc::check_failed,
                    "an implementation computed wrong; the lines above with # wrong say what");
      return 0;
    };
  });
}

}  // namespace shunt::cli

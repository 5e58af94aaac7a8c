#include <cmath>
#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/bench/routing_bench.h>
#include <shunt/bench/sweep.h>
#include <shunt/core/error.h>

#include "add_option.h"
#include "commands.h"
#include "terminal.h"

namespace shunt::cli {
namespace {

using bench::RoutingPoint;
using bench::RoutingWork;

constexpr std::int64_t kMostSize = std::int64_t{1} << 30;

void fail_if_wrong(bool failed) {
  if (failed)
    throw Error(Errc::check_failed,
                "an implementation computed wrong; the lines above with # wrong say what");
}

/// A list of numbers at commas.
template <class T>
void add_numbers(CLI::App& app, const std::string& name, const std::string& help, std::vector<T>& values,
                 std::int64_t max) {
  add_text(app, name, help, "N,...", [&values, max](const std::string& option, const std::string& text) {
    values.clear();
    for (const std::string& part : bench::split_list(option, text))
      values.push_back(static_cast<T>(bench::parse_whole(option, part, 1, max)));
  });
}

void add_factors(CLI::App& app, std::vector<double>& factors) {
  add_text(
      app, "--capacity-factors", "Of each expert's even share (default 1,1.1,1.25,1.5)", "X,...",
      [&factors](const std::string& option, const std::string& text) {
        factors.clear();
        for (const std::string& part : bench::split_list(option, text))
          factors.push_back(bench::parse_number(option, part, -1e6, 1e6));  // The formula has its own bounds
      });
}

/// Options that every benchmark and sweep of routing has.
void add_common(CLI::App& app, RoutingPoint& point, const std::string& seconds) {
  add_text(app, "--dtype", "Of tokens and rows, of logits with topk (default float16)",
           "float16|bfloat16|float32",
           [&point](const std::string&, const std::string& text) { point.dtype = parse_dtype(text); });
  add_list(
      app, "--impl",
      "scalar, simd, torch (libtorch, by a plugin), in turn in one run (default scalar,simd; sweeps simd)",
      point.impls);
  add_whole(app, "--threads", "Of every implementation (default as many as cores)", point.threads, 1, 1024);
  add_whole(app, "--seed", "Of tokens and logits (default 17)", point.seed, 0, INT64_MAX);
  add_whole(app, "--warmup", "Untimed iterations (default 10)", point.warmup, 0, 1'000'000);
  add_whole(app, "--iters,--iterations", "Timed iterations (default 100)", point.iterations, 1, 1'000'000);
  add_text(app, "--max-seconds",
           "Timed iterations of a point end early after it, at least 3 are made (default " + seconds + ")",
           "X", [&point](const std::string& option, const std::string& text) {
             point.max_seconds = bench::parse_number(option, text, 0, 1e6);
           });
}

void add_formula(CLI::App& app, RoutingPoint& point) {
  add_text(app, "--formula", "Of the capacity (default ceil)",
           "ceil|megatron|megablocks|tutel|compat-sweep|compat-bench",
           [&point](const std::string&, const std::string& text) {
             point.formula = parse_capacity_formula(text);
           });
}

/// What a gate is like, beside its name.
void add_tuning(CLI::App& app, RoutingPoint& point) {
  add_text(app, "--temperature", "Of the gate (default 1)", "X",
           [&point](const std::string& option, const std::string& text) {
             point.temperature = bench::parse_number(option, text, 1e-6, 1e6);
           });
  add_whole(app, "--balance-steps",
            "Updates of the gate's bias towards even loads before it chooses (default 0)",
            point.balance_steps, 0, 1'000'000);
}

/// What makes the choice.
void add_gate(CLI::App& app, RoutingPoint& point) {
  app.add_option("--gate", point.gate, "A gate of docs/routing.md (default softk)")->type_name("NAME");
  app.add_option(
         "--router-arch", point.router,
         "Logits are what this network makes of normal tokens: linear, mlp, mlp-hadamard, cosine (default: "
         "normal logits)")
      ->type_name("NAME");
  const auto number = [&app](const char* name, const char* help, double& value, double least, double most) {
    add_text(app, name, help, "X", [&value, least, most](const std::string& option, const std::string& text) {
      value = bench::parse_number(option, text, least, most);
    });
  };
  add_tuning(app, point);
  number("--jitter", "Factor in [1 - X, 1 + X) of what the router reads (default 0)", point.jitter, 0, 0.999);
  number("--noise", "Deviation of normal noise on the logits (default 0)", point.noise, 0, 1e6);
}

struct TypedBench {
  bench::RoutingBenchOptions options;
  bool quiet = false;
};

void add_bench(CLI::App& parent, const char* name, const char* help, RoutingWork work,
               const std::vector<std::string>& arguments, Command& command) {
  CLI::App* app = parent.add_subcommand(name, help);
  const auto typed = std::make_shared<TypedBench>();
  RoutingPoint& point = typed->options.point;
  point.work = work;
  add_whole(*app, "--num-tokens,--tokens", "Tokens (default 16384)", point.tokens, 1, kMostSize);
  add_whole(*app, "--hidden-dim,--hidden",
            work == RoutingWork::topk
                ? "Of what logits are made: their deviation is 0.02 sqrt(N) (default 4096)"
                : "Elements per token (default 4096)",
            point.hidden, 1, 1 << 24);
  add_whole(*app, "--num-experts,--experts", "Experts (default 128)", point.num_experts, 1, 1 << 20);
  add_whole(*app, "--top-k,--topk", "Experts per token (default 2)", point.top_k, 1, 1 << 20);
  if (work == RoutingWork::capacity) {
    add_factors(*app, typed->options.capacity_factors);
    add_formula(*app, point);
  }
  if (work != RoutingWork::topk) add_gate(*app, point);
  add_common(*app, point, "20");
  app->add_option("--jsonl,--out", typed->options.jsonl, "Record file; never overwritten")->type_name("FILE");
  app->add_flag("--quiet", typed->quiet, "No progress bar");
  app->callback([&command, typed, &arguments] {
    RoutingPoint& p = typed->options.point;
    // The old system's gating layer: weights of deviation 0.02 on normal tokens. Its capacity benchmark draws logits.
    if (p.work != RoutingWork::capacity) p.logit_deviation = 0.02 * std::sqrt(static_cast<double>(p.hidden));
    // That benchmark adds rows up.
    if (p.work == RoutingWork::capacity) p.weighted = false;
    command = [typed, &arguments] {
      fail_if_wrong(
          bench::run_routing_bench(typed->options, arguments, terminal_output(typed->quiet)).failed);
      return 0;
    };
  });
}

struct TypedSweep {
  bench::SweepOptions options;
  bool quiet = false, renormalise = false;
};

void add_sweep_of(CLI::App& parent, RoutingWork work, const std::vector<std::string>& arguments,
                  Command& command) {
  const bool capacity = work == RoutingWork::capacity;
  CLI::App* app =
      parent.add_subcommand(capacity ? "capacity" : "pack",
                            capacity ? "Drop rates and pack+combine over experts, top-k and capacity factors"
                                     : "Pack+combine over tokens, hidden sizes, experts and top-k");
  const auto typed = std::make_shared<TypedSweep>();
  bench::SweepOptions& o = typed->options;
  o.point.work = work;
  o.point.impls = {"simd"};
  o.point.max_seconds = 5;
  o.tokens = capacity ? std::vector<std::int64_t>{16384} : std::vector<std::int64_t>{8192, 16384, 32768};
  o.hidden = capacity ? std::vector<std::int64_t>{4096} : std::vector<std::int64_t>{2048, 4096};
  o.experts = {32, 64, 128};
  o.top_k = {1, 2, 4};
  o.capacity_factors = {1.0, 1.1, 1.25, 1.5};
  o.output = capacity ? "results/capacity_ke.jsonl" : "results/pack.jsonl";
  add_numbers(*app, "--tokens", capacity ? "Tokens (default 16384)" : "Tokens (default 8192,16384,32768)",
              o.tokens, kMostSize);
  add_numbers(*app, "--hidden,--hidden-dim",
              capacity ? "Elements per token (default 4096)" : "Elements per token (default 2048,4096)",
              o.hidden, 1 << 24);
  add_numbers(*app, "--experts", "Experts (default 32,64,128)", o.experts, 1 << 20);
  add_numbers(*app, "--topk", "Experts per token (default 1,2,4)", o.top_k, 1 << 20);
  if (capacity) {
    add_factors(*app, o.capacity_factors);
    add_formula(*app, o.point);
    app->add_flag("--renorm-after-drop", typed->renormalise,
                  "The weights that dropping leaves sum to what they were before");
  }
  app->add_option("--strategy,--gate", o.point.gate, "A gate of docs/routing.md (default softk)")
      ->type_name("NAME");
  add_tuning(*app, o.point);
  add_common(*app, o.point, "5");
  app->add_option("--output,--out", o.output,
                  "Record file; what it holds is not measured again (default " + o.output + ")")
      ->type_name("FILE");
  app->add_flag("--dry-run", o.dry_run, "Print the points that would be measured");
  app->add_flag("--quiet", typed->quiet, "No progress bar");
  app->callback([&command, typed, &arguments] {
    if (typed->renormalise) typed->options.point.renormalise = Renormalise::keep_sum;
    command = [typed, &arguments] {
      fail_if_wrong(bench::run_sweep(typed->options, arguments, terminal_output(typed->quiet)).failed);
      return 0;
    };
  });
}

}  // namespace

void add_bench_routing(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  add_bench(parent, "topk", "Expert ids and softmax weights from logits, every result checked",
            RoutingWork::topk, arguments, command);
  add_bench(parent, "routing", "Pack by expert and combine, identity experts, every result checked",
            RoutingWork::routing, arguments, command);
  add_bench(parent, "pack-only", "The first half of routing: tokens into expert order",
            RoutingWork::pack_only, arguments, command);
  add_bench(parent, "combine", "The second half of routing: weighted sums of the rows of each token",
            RoutingWork::combine_only, arguments, command);
  add_bench(parent, "capacity", "Routing with capacity factors, and what they drop", RoutingWork::capacity,
            arguments, command);
}

void add_sweep(CLI::App& parent, const std::vector<std::string>& arguments, Command& command) {
  CLI::App* sweep = parent.add_subcommand("sweep", "Grids of benchmark points, resumed where they ended");
  sweep->require_subcommand(1);
  add_sweep_of(*sweep, RoutingWork::routing, arguments, command);
  add_sweep_of(*sweep, RoutingWork::capacity, arguments, command);
}

}  // namespace shunt::cli

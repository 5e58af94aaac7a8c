#include <memory>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/plan/search.h>

#include "plan.h"
#include "plan_options.h"

namespace shunt::cli {

void add_plan_search(CLI::App& parent, Command& command) {
  struct Options {
    PlanRequest request;
    plan::SearchOptions search;
    plan::Format format = plan::Format::text;
  };
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "search", "Layouts that fit a cluster, its memory and targets: the fastest ones and the Pareto front");
  add_plan_options(*app, o->request, {false, true});
  plan::SearchOptions& s = o->search;
  add_whole(*app, "--max-tp", "Largest tensor parallel to try (GPUs of a scale-up domain)", s.most_tp, 1,
            1 << 16);
  add_whole(*app, "--max-pp", "Most pipeline stages to try (training: layers, serving: 4)", s.most_pp, 1,
            1 << 16);
  add_whole(*app, "--max-gpus", "Serving: most GPUs of one instance (all)", s.most_gpus, 1, 1 << 22);
  const auto target = [&](const char* name, const char* help, double& value) {
    add_text(*app, name, help, "X", [&value](const std::string& option, const std::string& text) {
      value = parse_number(option, text, 1e-9, 1e15);
    });
  };
  target("--ttft-ms", "Prefill: latest first token, in ms", s.ttft_ms);
  target("--tpot-ms", "Decode: longest time between tokens of a sequence, in ms", s.tpot_ms);
  target("--tokens-per-s", "At least so many tokens/s of all GPUs", s.tokens_per_s);
  add_text(*app, "--batches",
           "Serving: sequences (decode) or prompts (prefill) of a data-parallel rank to try (1,2,4,...)",
           "N,...", [o](const std::string& option, const std::string& text) {
             for (const std::string& part : split_list(option, text))
               o->search.batches.push_back(parse_whole(option, part, 1, 1 << 20));
           });
  add_whole(*app, "--top", "Plans to list (10)", s.shown, 1, 1000);
  add_format(*app, o->format);
  app->callback([&command, o] {
    command = [o] {
      const LoadedPlan loaded = load_plan(o->request);
      plan::SearchOptions search = o->search;
      search.base = loaded.options;
      print_report(plan::report_search(loaded.model, loaded.machine, search, loaded.fits.get()), o->format);
      return 0;
    };
  });
}

}  // namespace shunt::cli

#include <memory>

#include <CLI/CLI.hpp>

#include "plan.h"
#include "plan_options.h"

namespace shunt::cli {

void add_plan_step(CLI::App& parent, Command& command) {
  struct Options {
    PlanRequest request;
    plan::Format format = plan::Format::text;
  };
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "step", "How long one training step, prefill pass or decode step takes, part by part");
  add_plan_options(*app, o->request, {true, false});
  add_format(*app, o->format);
  app->callback([&command, o] {
    command = [o] {
      const LoadedPlan loaded = load_plan(o->request);
      print_report(plan::report_step(loaded.model, loaded.machine, loaded.options, loaded.fits.get()),
                   o->format);
      return 0;
    };
  });
}

}  // namespace shunt::cli

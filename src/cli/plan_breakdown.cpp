#include <memory>

#include <CLI/CLI.hpp>

#include "plan.h"
#include "plan_options.h"

namespace shunt::cli {

void add_plan_breakdown(CLI::App& parent, Command& command) {
  struct Options {
    PlanRequest request;
    plan::Format format = plan::Format::text;
  };
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "breakdown", "A layout in full: feasibility, groups, time and memory part by part, hot spots, advice");
  add_plan_options(*app, o->request, {});
  app->add_flag("--idle-gpus", o->request.plan.idle_gpus, "The layout may leave GPUs of the cluster over");
  add_format(*app, o->format);
  app->callback([&command, o] {
    command = [o] {
      const LoadedPlan loaded = load_plan(o->request);
      print_report(plan::report_breakdown(loaded.model, loaded.machine, loaded.options, loaded.fits.get()),
                   o->format);
      return 0;
    };
  });
}

}  // namespace shunt::cli

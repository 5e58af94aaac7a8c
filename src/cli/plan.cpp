#include "plan.h"

#include <memory>

#include <CLI/CLI.hpp>

#include <shunt/cluster/model.h>
#include <shunt/cluster/model_shape.h>
#include <shunt/plan/params.h>

#include "add_option.h"
#include "commands.h"
#include "output.h"

namespace shunt::cli {

void add_format(CLI::App& app, plan::Format& format) {
  add_text(app, "--format", "How the answer is written: text, markdown, json or csv", "NAME",
           [&format](const std::string&, const std::string& text) { format = plan::parse_format(text); });
}

void print_report(const plan::Report& report, plan::Format format) {
  print_text(plan::render(report, format));
}

namespace {

void add_plan_params(CLI::App& parent, Command& command) {
  struct Options {
    std::string model;
    plan::Format format = plan::Format::text;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "params", "Exact parameter counts of a model, active parameters, KV cache bytes per token");
  app->add_option("model", options->model,
                  "Preset, TOML file, Hugging Face config.json, or a directory that holds one")
      ->type_name("MODEL")
      ->required();
  add_format(*app, options->format);
  app->callback([&command, options] {
    command = [options] {
      print_report(plan::report_parameters(find_model(options->model, preset_directory())), options->format);
      return 0;
    };
  });
}

}  // namespace

void add_plan(CLI::App& parent, Command& command) {
  CLI::App* app =
      parent.add_subcommand("plan", "What a model needs on a cluster, before the cluster is rented");
  app->require_subcommand(1);
  add_plan_params(*app, command);
  add_plan_memory(*app, command);
  add_plan_env(*app, command);
  add_plan_grouping(*app, command);
  add_plan_affinity(*app, command);
  add_plan_alltoall(*app, command);
  add_plan_breakdown(*app, command);
  add_plan_search(*app, command);
  add_plan_compare(*app, command);
  add_plan_schedule(*app, command);
  add_plan_step(*app, command);
  add_plan_run(*app, command);
  add_plan_list_targets(*app, command);
}

}  // namespace shunt::cli

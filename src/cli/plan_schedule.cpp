#include <algorithm>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/core/error.h>
#include <shunt/plan/schedule.h>

#include "add_option.h"
#include "plan.h"

namespace shunt::cli {
namespace {

struct Options {
  plan::ScheduleOptions schedule;
  std::vector<std::string> names;
  double backward = -1;
  bool chunks = false;  ///< --chunks was given
  bool halves = false;  ///< One of the two parts of the backward pass was given
  plan::Format format = plan::Format::text;
};

int run(Options o) {
  if (o.backward >= 0) {
    if (o.halves)
      throw Error(Errc::invalid_argument,
                  "give --backward, or --backward-input and --backward-weight, not both");
    o.schedule.times.backward_input = o.schedule.times.backward_weight = o.backward / 2;
  }
  const auto asks_for = [&](const std::string& name) {
    return o.names.empty() || std::find(o.names.begin(), o.names.end(), name) != o.names.end();
  };
  if (o.chunks && !asks_for("interleaved"))
    throw Error(Errc::invalid_argument,
                "--chunks is for the interleaved schedule, which is not among those asked for");
  if (o.schedule.times.overlapped > 0 && !asks_for("dualpipe") && !asks_for("dualpipev"))
    throw Error(Errc::invalid_argument,
                "--overlapped is for dualpipe and dualpipev, which are not among the schedules asked for");
  std::vector<plan::Pipeline> pipelines;
  for (const std::string& name : o.names) pipelines.push_back(plan::find_pipeline(name));
  print_report(plan::report_schedule(pipelines, o.schedule), o.format);
  return 0;
}

}  // namespace

void add_plan_schedule(CLI::App& parent, Command& command) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "schedule", "Bubble, step time and activations in flight of pipeline schedules, in closed form");
  add_list(*app, "--schedule", fmt::format("{} (all)", fmt::join(plan::pipeline_names(), ", ")), o->names);
  add_whole(*app, "--pp", "Pipeline stages (4)", o->schedule.stages, 1, 1 << 20);
  add_whole(*app, "--microbatches", "Microbatches of one step (8)", o->schedule.microbatches, 1,
            std::int64_t{1} << 40);
  add_text(*app, "--chunks", "Model chunks of a stage, for interleaved (2)", "N",
           [o](const std::string& option, const std::string& text) {
             o->schedule.chunks = parse_whole(option, text, 1, 1 << 20);
             o->chunks = true;
           });
  const auto time = [&](const char* name, const char* help, double& value, bool half) {
    add_text(*app, name, help, "MS", [o, &value, half](const std::string& option, const std::string& text) {
      value = parse_number(option, text, 0, 1e12);
      o->halves = o->halves || half;
    });
  };
  add_text(*app, "--forward",
           "Forward pass of one microbatch on one stage, in ms (1); as many as stages where they differ, "
           "backward passes in proportion to the first",
           "MS,...", [o](const std::string& option, const std::string& text) {
             std::vector<double> times;
             for (const std::string& part : split_list(option, text))
               times.push_back(parse_number(option, part, 0, 1e12));
             o->schedule.stage_forward.clear();
             o->schedule.times.forward = times.front();
             if (times.size() > 1) o->schedule.stage_forward = times;
           });
  time("--backward", "Backward pass, in ms (2): half for the inputs, half for the weights", o->backward,
       false);
  time("--backward-input", "Its part for the inputs, in ms (1)", o->schedule.times.backward_input, true);
  time("--backward-weight", "Its part for the weights, in ms (1)", o->schedule.times.backward_weight, true);
  time("--overlapped", "A forward and a backward pass at once, in ms, for dualpipe (their sum)",
       o->schedule.times.overlapped, false);
  add_format(*app, o->format);
  app->callback([&command, o] { command = [o] { return run(*o); }; });
}

}  // namespace shunt::cli

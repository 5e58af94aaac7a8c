#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/cluster/model.h>
#include <shunt/cluster/model_shape.h>
#include <shunt/cluster/parameters.h>
#include <shunt/core/error.h>
#include <shunt/plan/grouping.h>

#include "add_option.h"
#include "plan.h"

namespace shunt::cli {
namespace {

struct Options {
  plan::GroupingOptions grouping;
  std::string model;
  std::string loads;
  std::int64_t experts = 0;
  std::int64_t groups = 0;
  std::int64_t redundant = 0;
  double alpha = 1.01;
  bool alpha_given = false;
  std::int64_t seed = 17;
  plan::Format format = plan::Format::text;
};

int run(Options o) {
  if (!o.loads.empty() && (o.alpha_given || o.experts > 0))
    throw Error(Errc::invalid_argument,
                "--loads brings experts and loads; leave --experts and --power-law out");
  if (!o.model.empty() && o.experts > 0)
    throw Error(Errc::invalid_argument, "give --model or --experts, not both");
  std::int64_t groups = o.groups;
  if (!o.model.empty()) {
    const ModelSpec model = find_model(o.model, preset_directory());
    if (model.experts == 0) throw Error(Errc::invalid_argument, fmt::format("{} has no experts", model.name));
    o.experts = model.experts;
    if (groups == 0) groups = model.expert_groups;
    o.grouping.expert_bytes =
        static_cast<double>(model.moe_layers()) *
        static_cast<double>(mlp_parameters(model, model.expert_intermediate, model.expert_bias).total()) *
        weight_bits(model.expert_weights) / 8;
  }
  if (o.loads.empty() && o.experts == 0)
    throw Error(Errc::invalid_argument, "plan grouping: give --model, --experts or --loads");
  const std::vector<float> loads =
      o.loads.empty() ? plan::power_law_loads(o.experts, o.alpha, static_cast<std::uint64_t>(o.seed))
                      : plan::read_loads(o.loads);
  const auto experts = static_cast<std::int64_t>(loads.size());
  if (!o.model.empty() && experts != o.experts)
    throw Error(Errc::invalid_argument,
                fmt::format("{}: {} loads, but {} has {} experts", o.loads, experts, o.model, o.experts));
  o.grouping.shape.groups = groups == 0 ? 1 : groups;
  o.grouping.shape.places = experts + o.redundant;
  print_report(plan::report_grouping(loads, o.grouping), o.format);
  return 0;
}

}  // namespace

void add_plan_grouping(CLI::App& parent, Command& command) {
  const auto o = std::make_shared<Options>();
  CLI::App* app =
      parent.add_subcommand("grouping", "Which expert should lie on which rank, and how even that is");
  app->add_option("--model", o->model, "Experts, groups and bytes of this model")->type_name("MODEL");
  add_whole(*app, "--experts", "Experts, without --model", o->experts, 1, 1 << 16);
  app->add_option("--loads", o->loads, "File with the load of each expert; lines are summed")
      ->type_name("FILE");
  add_text(*app, "--power-law", "Loads of rank^-A in a shuffled order, without --loads (1.01)", "A",
           [o](const std::string& option, const std::string& text) {
             o->alpha = parse_number(option, text, 0, 10);
             o->alpha_given = true;
           });
  add_whole(*app, "--seed", "Of that order (17)", o->seed, 0, std::int64_t{1} << 62);
  add_whole(*app, "--ranks", "Ranks that hold experts (8)", o->grouping.shape.ranks, 1, 1 << 16);
  add_whole(*app, "--nodes", "Nodes of these ranks (1)", o->grouping.shape.nodes, 1, 1 << 16);
  add_whole(*app, "--groups", "Groups of experts (of the model, else 1)", o->groups, 1, 1 << 16);
  add_whole(*app, "--redundant-experts", "Copies beyond the first, all ranks together (0)", o->redundant, 0,
            1 << 16);
  add_list(*app, "--strategy", fmt::format("{} (all)", fmt::join(plan::grouping_strategies(), ", ")),
           o->grouping.strategies);
  add_format(*app, o->format);
  o->grouping.shape.ranks = 8;
  app->callback([&command, o] { command = [o] { return run(*o); }; });
}

}  // namespace shunt::cli

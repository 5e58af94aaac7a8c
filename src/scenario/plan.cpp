#include <shunt/scenario/plan.h>

#include <algorithm>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "templates.h"

namespace shunt::scenario {
namespace {

constexpr std::size_t kMostCases = 100'000;

/// An axis of a sweep: how many values, and how one is set.
struct Axis {
  std::string name;
  std::vector<Scalar> values;
  std::size_t argument = 0;  ///< index in cmd_args, or in env
  enum class Of { cmd_args, env, nodes } of = Of::cmd_args;
};

std::vector<Axis> axes_of(const TestEntry& entry) {
  std::vector<Axis> axes;
  const auto add = [&axes](const std::vector<Argument>& arguments, Axis::Of of, const std::string& prefix) {
    for (std::size_t i = 0; i < arguments.size(); ++i)
      if (arguments[i].swept())
        axes.push_back(
            {.name = prefix + arguments[i].name, .values = arguments[i].values, .argument = i, .of = of});
  };
  add(entry.test.cmd_args, Axis::Of::cmd_args, "");
  add(entry.test.env, Axis::Of::env, "extra_env_vars.");
  if (entry.num_nodes.size() > 1) {
    Axis axis{.name = "NUM_NODES", .values = {}, .argument = 0, .of = Axis::Of::nodes};
    for (const std::int64_t nodes : entry.num_nodes) axis.values.emplace_back(nodes);
    axes.push_back(std::move(axis));
  }
  return axes;
}

void choose(Case& one, const Axis& axis, const Scalar& value) {
  one.point.emplace_back(axis.name, value);
  if (axis.of == Axis::Of::nodes)
    one.num_nodes = std::get<std::int64_t>(value);
  else
    (axis.of == Axis::Of::env ? one.definition.env : one.definition.cmd_args)[axis.argument].values = {value};
}

void check_ranks(const Case& one, const TestEntry& entry, const System& system) {
  const TestDefinition& test = one.definition;
  check_together(test, entry.place);
  const bool deepep = test.workload == Workload::deepep_benchmark ||
                      test.workload == Workload::moe_benchmark || test.workload == Workload::deepep_scripts;
  // In a container it is the container that decides how many ranks a node has; without a number nothing is checked.
  if (!deepep || (test.workload != Workload::deepep_scripts && entry.ranks_per_node == 0 &&
                  system.ranks_per_node == 0 && system.gpus_per_node == 0))
    return;
  const std::int64_t ranks = one.num_nodes * ranks_per_node(one, entry, system);
  const std::int64_t experts = test.whole("num_experts", 0);
  if (experts % ranks == 0) return;
  const Argument* argument = test.find("num_experts");
  fail_at(argument->place.line > 0 ? argument->place : entry.place,
          fmt::format(
              "num_experts = {} of test \"{}\" cannot be shared out evenly among {} ranks ({} nodes of {})",
              experts, entry.id, ranks, one.num_nodes, ranks / one.num_nodes));
}

}  // namespace

std::string Case::folder() const {
  return step == 0 ? fmt::format("{}/{}", id, iteration) : fmt::format("{}/{}/{}", id, iteration, step);
}

std::string Case::label() const {
  return fmt::format("{}{}{}", id, iteration == 0 ? "" : fmt::format("#{}", iteration),
                     step == 0 ? "" : fmt::format(".{}", step));
}

std::int64_t ranks_per_node(const Case& one, const TestEntry& entry, const System& system) {
  if (entry.ranks_per_node > 0) return entry.ranks_per_node;
  if (one.definition.workload == Workload::deepep_scripts) return one.definition.whole("num_processes", 8);
  if (system.ranks_per_node > 0) return system.ranks_per_node;
  return system.gpus_per_node > 0 ? system.gpus_per_node : 2;
}

std::vector<Case> expand(const Scenario& scenario, const System& system) {
  std::vector<Case> cases;
  for (std::size_t t = 0; t < scenario.tests.size(); ++t) {
    const TestEntry& entry = scenario.tests[t];
    const std::vector<Axis> axes = axes_of(entry);
    std::size_t points = 1;
    for (const Axis& axis : axes) {
      points *= axis.values.size();
      if (points * static_cast<std::size_t>(entry.iterations) + cases.size() > kMostCases)
        fail_at(entry.place,
                fmt::format("test \"{}\" makes the scenario longer than {} runs", entry.id, kMostCases));
    }
    if (points * static_cast<std::size_t>(entry.iterations) + cases.size() > kMostCases)
      fail_at(entry.place,
              fmt::format("test \"{}\" makes the scenario longer than {} runs", entry.id, kMostCases));
    for (std::int64_t iteration = 0; iteration < entry.iterations; ++iteration)
      for (std::size_t point = 0; point < points; ++point) {
        Case one;
        one.test = t;
        one.id = entry.id;
        one.iteration = iteration;
        one.step = axes.empty() ? 0 : static_cast<std::int64_t>(point) + 1;
        one.num_nodes = entry.num_nodes.front();
        one.definition = entry.test;
        std::size_t block = points;
        for (const Axis& axis : axes) {
          block /= axis.values.size();
          choose(one, axis, axis.values[point / block % axis.values.size()]);
        }
        check_ranks(one, entry, system);
        cases.push_back(std::move(one));
      }
  }
  return cases;
}

}  // namespace shunt::scenario

#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <sstream>

#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "plan.h"
#include "plan_options.h"
#include "suggest.h"

namespace shunt::cli {
namespace {

/// What `plan breakdown --format json` printed.
plan::ComparedPlan read_plan(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw Error(Errc::io, fmt::format("{}: cannot read this file", path));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || json.value("record", "") != "plan_breakdown")
    throw Error(Errc::io, fmt::format("{}: expected what shunt plan breakdown --format json prints", path));
  plan::ComparedPlan plan;
  plan.name = json.value("name", path);
  for (const plan::PlanMetric& metric : plan::plan_metrics()) {
    const auto found = json.find(metric.key);
    plan.values.push_back(found != json.end() && found->is_number()
                              ? found->get<double>()
                              : std::numeric_limits<double>::quiet_NaN());
  }
  return plan;
}

/// The common options with those of one plan on top.
plan::ComparedPlan evaluate(const PlanRequest& common, const std::string& which, const std::string& text) {
  const auto request = std::make_shared<PlanRequest>(common);
  CLI::App app{"one plan"};
  app.name(which);
  add_plan_options(app, *request, {});
  request->cluster = common.cluster;  // add_plan_options sets its default
  request->cluster.hosts = request->cluster.gpus = 0;
  std::istringstream stream(text);
  std::vector<std::string> words{which};
  for (std::string word; stream >> word;) words.push_back(word);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  try {
    app.parse(static_cast<int>(arguments.size()), arguments.data());
  } catch (const CLI::ParseError& error) {
    const std::string hint = suggestion(app, words);
    throw Error(Errc::invalid_argument,
                fmt::format("{} \"{}\": {}", which, text, hint.empty() ? error.what() : hint));
  }
  // Either of these in one plan stands for both of the common ones.
  if (request->cluster.hosts == 0 && request->cluster.gpus == 0) {
    request->cluster.hosts = common.cluster.hosts;
    request->cluster.gpus = common.cluster.gpus;
  }
  try {
    const LoadedPlan loaded = load_plan(*request);
    const plan::PlanResult result =
        plan::evaluate_plan(loaded.model, loaded.machine, loaded.options, loaded.fits.get());
    const plan::Layout& layout = result.time.options.layout;
    return {fmt::format("{} on {} {}: {}", loaded.model.name, layout.world(), loaded.machine.node.name,
                        plan::layout_name(layout)),
            plan::metric_values(result)};
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{} \"{}\": {}", which, text, error.what()));
  }
}

}  // namespace

void add_plan_compare(CLI::App& parent, Command& command) {
  struct Options {
    PlanRequest request;
    std::string a, b;
    plan::Format format = plan::Format::text;
  };
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand("compare", "Two plans: times, throughput, memory, ratios");
  app->add_option(
         "--a", o->a,
         "\"--option value ...\" of plan breakdown on top of the common ones, or its JSON file (FILE.json)")
      ->type_name("PLAN")
      ->required();
  app->add_option("--b", o->b, "The other one")->type_name("PLAN")->required();
  add_plan_options(*app, o->request, {});
  app->add_flag("--idle-gpus", o->request.plan.idle_gpus, "The layouts may leave GPUs of the cluster over");
  add_format(*app, o->format);
  app->callback([&command, o] {
    command = [o] {
      const auto one = [&](const std::string& which, const std::string& text) {
        return text.ends_with(".json") && text.find(' ') == std::string::npos
                   ? read_plan(text)
                   : evaluate(o->request, which, text);
      };
      const plan::ComparedPlan a = one("--a", o->a);
      const plan::ComparedPlan b = one("--b", o->b);
      print_report(plan::report_compare(a, b), o->format);
      return 0;
    };
  });
}

}  // namespace shunt::cli

#include <cstdlib>
#include <memory>
#include <optional>
#include <sstream>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <shunt/core/error.h>
#include <shunt/core/record.h>
#include <shunt/plan/lab.h>

#include "add_option.h"
#include "plan.h"

namespace shunt::cli {
namespace {

using plan::lab::Settings;
using plan::lab::Target;

struct Options {
  std::vector<std::string> targets;
  std::vector<std::string> extra;
  std::string cost_model = "ours";
  std::string profile = "minimal";
  std::string artifacts;
  std::vector<std::string> words;  ///< Options of the targets themselves, as --target-extra-arg has them
  plan::Format format = plan::Format::text;
};

/// Takes one option of a target: "--fabric", "ib". False where there is no such option.
bool set_target_option(Settings& s, const std::string& name, const std::string& value) {
  const auto count = [&] { return bench::parse_whole(name, value, 1, 1 << 30); };
  if (name == "--spec") {
    s.spec = plan::lab::find_spec(value).name;
  } else if (name == "--fabric") {
    s.fabric = value;
  } else if (name == "--model") {
    s.model = value;
  } else if (name == "--ngpu") {
    s.ngpu = count();
  } else if (name == "--tp") {
    s.tp = count();
  } else if (name == "--pp") {
    s.pp = count();
  } else if (name == "--max-len") {
    s.max_len = count();
  } else if (name == "--max-seqs") {
    s.max_seqs = count();
  } else if (name == "--gpu-util") {
    s.gpu_util = bench::parse_number(name, value, 0.01, 1.0);
  } else {
    return false;
  }
  return true;
}

void apply(Settings& settings, const std::vector<std::string>& words, const std::string& where) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--validate") {
      settings.validate = true;
      continue;
    }
    const std::size_t equals = words[i].find('=');
    const std::string name = words[i].substr(0, equals);
    if (equals == std::string::npos && i + 1 == words.size())
      throw Error(Errc::invalid_argument, fmt::format("{}: {} needs a value", where, name));
    const std::string value = equals == std::string::npos ? words[++i] : words[i].substr(equals + 1);
    if (!set_target_option(settings, name, value)) {
      throw Error(
          Errc::invalid_argument,
          fmt::format(
              "{}: unknown option {}; allowed are --spec, --fabric, --validate, --model, --ngpu, --tp, "
              "--pp, --max-len, --max-seqs, --gpu-util",
              where, name));
    }
  }
}

std::vector<const Target*> chosen_targets(const std::vector<std::string>& names) {
  std::vector<const Target*> chosen;
  for (const std::string& name : names) {
    if (name == "all" || name == "moe_parallelism" || name == "labs/moe_parallelism") {
      for (const Target& target : plan::lab::targets()) chosen.push_back(&target);
    } else if (name == "grouped") {
      chosen.push_back(&plan::lab::find_target("moe_grouping"));
    } else {
      chosen.push_back(&plan::lab::find_target(name));
    }
  }
  return chosen;
}

int run(const Options& o) {
  const bool ours = choose("--cost-model", o.cost_model, {"ours", "lab"}) == 0;
  if (o.profile != "minimal" && o.profile != "none")
    throw Error(
        Errc::invalid_argument,
        fmt::format("--profile \"{}\": a plan runs no kernels; allowed are minimal and none", o.profile));
  if (o.targets.empty())
    throw Error(Errc::invalid_argument, "plan run: give --targets or --scenario (shunt plan list-targets)");
  Settings common;
  apply(common, o.words, "plan run");
  std::vector<std::pair<const Target*, Settings>> chosen;
  for (const Target* target : chosen_targets(o.targets)) chosen.emplace_back(target, common);
  for (const std::string& text : o.extra) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos)
      throw Error(Errc::invalid_argument,
                  fmt::format("--target-extra-arg \"{}\": expected target=\"--option value\"", text));
    const Target& target = plan::lab::find_target(text.substr(0, equals));
    std::istringstream stream(text.substr(equals + 1));
    std::vector<std::string> words;
    for (std::string word; stream >> word;) words.push_back(word);
    bool used = false;
    for (auto& [one, settings] : chosen) {
      if (one != &target) continue;
      apply(settings, words, fmt::format("--target-extra-arg {}", target.name));
      used = true;
    }
    if (!used)
      throw Error(Errc::invalid_argument,
                  fmt::format("--target-extra-arg {}: this target is not among --targets", target.name));
  }
  const plan::lab::Outcome outcome =
      ours ? plan::lab::run_targets_by_our_model(chosen) : plan::lab::run_targets(chosen);
  print_report(outcome.report, o.format);
  if (!o.artifacts.empty()) {
    write_new_file(o.artifacts + "/plan_run.json", plan::render(outcome.report, plan::Format::json));
    write_new_file(o.artifacts + "/plan_run.md", plan::render(outcome.report, plan::Format::markdown));
  }
  return outcome.ok ? 0 : 1;
}

}  // namespace

void add_plan_run(CLI::App& parent, Command& command) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "run",
      "Pairs of the MoE parallelism planner lab, baseline and optimized, by our cost model or its own");
  add_list(*app, "--targets,-t", "moe_parallelism:NAME, moe_parallelism or all (shunt plan list-targets)",
           o->targets);
  add_list(*app, "--scenario", "The same by the names of the lab's driver: grouped, gpt_gb200, ...",
           o->targets);
  app->add_option(
         "--cost-model", o->cost_model,
         "ours: rooflines and tiers, beside the lab's numbers (default); lab: the lab's own formulas")
      ->type_name("NAME");
  app->add_option("--profile,-p", o->profile, "minimal or none")->type_name("NAME");
  app->add_option("--target-extra-arg", o->extra,
                  "target=\"--option value\", for one target; may be repeated")
      ->type_name("TEXT")
      ->take_all()
      ->expected(1, -1)
      ->allow_extra_args(false);
  app->add_option("--artifacts-dir", o->artifacts, "Writes plan_run.json and plan_run.md there")
      ->type_name("DIR");
  app->add_flag_callback(
      "--validate", [o] { o->words.emplace_back("--validate"); },
      "Fail where an optimized half does not pass a check that its baseline passes");
  const std::vector<std::pair<const char*, const char*>> passed_on = {
      {"--spec",
       "Model and cluster: gpt_oss_120b_gb200_ib (default), gpt_oss_120b_gb200_ethernet, "
       "deepseek_r1_678b_gb200_ib, dgx_a100_175b"},
      {"--fabric",
       "alltoall_tuning: nvlink, ib, efa; moe_vllm_env: nvlink, nvl72 ($MPE_FABRIC, else nvlink)"},
      {"--model", "moe_vllm_env: model to serve"},
      {"--ngpu", "moe_vllm_env: GPUs"},
      {"--tp", "moe_vllm_env: tensor parallel"},
      {"--pp", "moe_vllm_env: pipeline stages"},
      {"--max-len", "moe_vllm_env: tokens of a sequence"},
      {"--max-seqs", "moe_vllm_env: sequences at once"},
      {"--gpu-util", "moe_vllm_env: share of the memory"}};
  for (const auto& [name, help] : passed_on)
    add_text(*app, name, help, "VALUE", [o](const std::string& option, const std::string& text) {
      o->words.push_back(option);
      o->words.push_back(text);
    });
  add_format(*app, o->format);
  app->callback([&command, o] { command = [o] { return run(*o); }; });
}

void add_plan_list_targets(CLI::App& parent, Command& command) {
  const auto format = std::make_shared<plan::Format>(plan::Format::text);
  CLI::App* app = parent.add_subcommand("list-targets", "Names that shunt plan run takes");
  add_format(*app, *format);
  app->callback([&command, format] {
    command = [format] {
      plan::Table targets{"targets", {{"target", "target"}}, {}};
      for (const Target& target : plan::lab::targets())
        targets.rows.push_back({fmt::format("moe_parallelism:{}", target.name)});
      if (*format == plan::Format::text) {
        for (const auto& row : targets.rows) fmt::print("{}\n", std::get<std::string>(row[0]));
        return 0;
      }
      plan::Report report("plan_targets");
      report.tables.push_back(targets);
      print_report(report, *format);
      return 0;
    };
  });
}

}  // namespace shunt::cli

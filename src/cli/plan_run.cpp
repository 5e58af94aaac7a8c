#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/core/record.h>
#include <shunt/plan/lab.h>

#include "add_option.h"
#include "output.h"
#include "plan.h"

namespace shunt::cli {
namespace {

using plan::lab::Kind;
using plan::lab::Settings;
using plan::lab::Target;

using Chosen = std::vector<std::pair<const Target*, Settings>>;

/// One option of a target, as it was given.
struct Given {
  std::string name;
  std::string value;
};

struct Options {
  std::vector<std::string> targets;
  std::vector<std::string> extra;
  std::string cost_model = "ours";
  std::string profile = "minimal";
  std::string artifacts;
  std::vector<Given> given;  ///< For all targets that take it
  plan::Format format = plan::Format::text;
};

const std::vector<std::string>& target_options() {
  static const std::vector<std::string> names = {"--spec",     "--fabric",  "--validate", "--model",
                                                 "--ngpu",     "--tp",      "--pp",       "--max-len",
                                                 "--max-seqs", "--gpu-util"};
  return names;
}

bool takes(const Target& target, const std::string& option) {
  if (option == "--spec" || option == "--validate") return true;
  if (option == "--fabric") return !target.fabrics.empty();
  return target.kind == Kind::vllm;
}

void set_target_option(Settings& s, const Given& given) {
  const auto& [name, value] = given;
  const auto count = [&] { return parse_whole(given.name, given.value, 1, 1 << 30); };
  if (name == "--validate") {
    s.validate = true;
  } else if (name == "--spec") {
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
  } else {
    s.gpu_util = parse_number(name, value, 0.01, 1.0);
  }
}

/// Words of a text, where quotes keep blanks together. A text that is quoted as a whole loses its quotes first: shells
/// that do not take them off pass them on.
std::vector<std::string> split_words(std::string text) {
  if (text.size() > 1 && (text[0] == '"' || text[0] == '\'') && text.find(text[0], 1) == text.size() - 1)
    text = text.substr(1, text.size() - 2);
  std::vector<std::string> words;
  bool open = false;
  char quote = 0;
  for (const char c : text) {
    if (quote != 0 ? c == quote : c == '"' || c == '\'') {
      quote = quote != 0 ? '\0' : c;
      if (!open) words.emplace_back();
      open = true;
    } else if (quote == 0 && (c == ' ' || c == '\t')) {
      open = false;
    } else {
      if (!open) words.emplace_back();
      open = true;
      words.back() += c;
    }
  }
  return words;
}

std::vector<Given> parse_target_options(const std::vector<std::string>& words, const std::string& where) {
  std::vector<Given> given;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::size_t equals = words[i].find('=');
    const std::string name = words[i].substr(0, equals);
    const auto& names = target_options();
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      throw Error(Errc::invalid_argument,
                  fmt::format("{}: unknown option {}; {}", where, name, allowed_names(name, names)));
    }
    if (name == "--validate") {
      given.push_back({name, ""});
      continue;
    }
    if (equals == std::string::npos && i + 1 == words.size())
      throw Error(Errc::invalid_argument, fmt::format("{}: {} needs a value", where, name));
    given.push_back({name, equals == std::string::npos ? words[++i] : words[i].substr(equals + 1)});
  }
  return given;
}

/// Targets that take the option, with what they allow.
std::string takers_of(const std::string& option) {
  std::vector<std::string> names;
  for (const Target& target : plan::lab::targets()) {
    if (!takes(target, option)) continue;
    names.push_back(option == "--fabric"
                        ? fmt::format("{} ({})", target.name, fmt::join(target.fabrics, ", "))
                        : target.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

/// Target by its name or one that the lab has for it elsewhere.
std::pair<const Target*, Settings> named_target(const std::string& name) {
  Settings settings;
  const std::size_t colon = name.find(':');
  const std::string last = colon == std::string::npos ? name : name.substr(colon + 1);
  if (last == "grouped") return {&plan::lab::find_target("moe_grouping"), settings};
  if (last == "custom_gpt_oss_gb200") {
    settings.fabric = "both";
    return {&plan::lab::find_target("gpt_gb200"), settings};
  }
  return {&plan::lab::find_target(name), settings};
}

Chosen chosen_targets(const std::vector<std::string>& names) {
  Chosen chosen;
  for (const std::string& name : names) {
    if (name == "all" || name == "moe_parallelism" || name == "labs/moe_parallelism") {
      for (const Target& target : plan::lab::targets()) chosen.emplace_back(&target, Settings{});
    } else {
      chosen.push_back(named_target(name));
    }
  }
  return chosen;
}

/// Sets an option on the targets that take it; a fabric on those that have it, with a note for the others.
void apply_to_all(const Given& given, Chosen& chosen, std::vector<std::string>& notes) {
  const auto has = [&](const Target& target) {
    return given.name != "--fabric" ||
           std::find(target.fabrics.begin(), target.fabrics.end(), given.value) != target.fabrics.end();
  };
  std::vector<std::string> without;
  bool used = false;
  for (auto& [target, settings] : chosen) {
    if (!takes(*target, given.name)) continue;
    if (has(*target)) {
      set_target_option(settings, given);
      used = true;
    } else {
      without.push_back(fmt::format("fabric \"{}\" of {}: allowed are {}", given.value, target->name,
                                    fmt::join(target->fabrics, ", ")));
    }
  }
  if (used) {
    for (const std::string& text : without) notes.push_back(text + "; it keeps its own");
    return;
  }
  if (!without.empty()) throw Error(Errc::invalid_argument, fmt::format("{}", fmt::join(without, "; ")));
  throw Error(Errc::invalid_argument, fmt::format("{} is for {}, not for the targets that were chosen",
                                                  given.name, takers_of(given.name)));
}

void apply_extra(const std::string& text, Chosen& chosen) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos)
    throw Error(Errc::invalid_argument,
                fmt::format("--target-extra-arg \"{}\": expected target=\"--option value\"", text));
  const Target& target = *named_target(text.substr(0, equals)).first;
  const std::string where = fmt::format("--target-extra-arg {}", target.name);
  const std::vector<Given> options = parse_target_options(split_words(text.substr(equals + 1)), where);
  bool used = false;
  for (auto& [one, settings] : chosen) {
    if (one != &target) continue;
    used = true;
    for (const Given& given : options) {
      if (!takes(target, given.name))
        throw Error(Errc::invalid_argument,
                    fmt::format("{}: {} is for {}", where, given.name, takers_of(given.name)));
      set_target_option(settings, given);
    }
  }
  if (!used)
    throw Error(Errc::invalid_argument, fmt::format("{}: this target is not among --targets", where));
}

constexpr const char* kArtifacts[] = {"/plan_run.json", "/plan_run.md"};

/// Before anything is printed or written: both are new, and there is a folder for them.
void prepare_artifacts(const std::string& folder) {
  for (const char* name : kArtifacts)
    if (std::filesystem::exists(folder + name))
      throw Error(Errc::io,
                  fmt::format("--artifacts-dir: {}{} exists; nothing is overwritten", folder, name));
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    throw Error(Errc::io, fmt::format("--artifacts-dir: cannot make {}: {}", folder, error.message()));
}

int run(const Options& o) {
  const bool ours = choose("--cost-model", o.cost_model, {"ours", "lab"}) == 0;
  if (o.profile != "minimal" && o.profile != "none")
    throw Error(
        Errc::invalid_argument,
        fmt::format("--profile \"{}\": a plan runs no kernels; allowed are minimal and none", o.profile));
  if (o.targets.empty())
    throw Error(Errc::invalid_argument, "plan run: give --targets or --scenario (shunt plan list-targets)");
  Chosen chosen = chosen_targets(o.targets);
  if (!o.artifacts.empty()) prepare_artifacts(o.artifacts);
  std::vector<std::string> notes;
  for (const Given& given : o.given) apply_to_all(given, chosen, notes);
  for (const std::string& text : o.extra) apply_extra(text, chosen);
  plan::lab::Outcome outcome =
      ours ? plan::lab::run_targets_by_our_model(chosen) : plan::lab::run_targets(chosen);
  outcome.report.notes.insert(outcome.report.notes.begin(), notes.begin(), notes.end());
  print_report(outcome.report, o.format);
  if (!o.artifacts.empty()) {
    write_new_file(o.artifacts + kArtifacts[0], plan::render(outcome.report, plan::Format::json));
    write_new_file(o.artifacts + kArtifacts[1], plan::render(outcome.report, plan::Format::markdown));
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
  add_list(*app, "--scenario",
           "The same; also grouped (moe_grouping) and custom_gpt_oss_gb200 (gpt_gb200 on both fabrics)",
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
      "--validate",
      [o] {
        o->given.push_back({"--validate", ""});
      },
      "Fail where an optimized half does not pass a check that its baseline passes");
  const std::vector<std::pair<const char*, const char*>> passed_on = {
      {"--spec",
       "Model and cluster: gpt_oss_120b_gb200_ib (default), gpt_oss_120b_gb200_ethernet, "
       "deepseek_r1_678b_gb200_ib, dgx_a100_175b"},
      {"--fabric",
       "alltoall_tuning: nvlink, ib, efa; moe_vllm_env: nvlink, nvl72 ($MPE_FABRIC, else nvlink); gpt_gb200: "
       "ib (its own), ethernet, both"},
      {"--model", "moe_vllm_env: model to serve"},
      {"--ngpu", "moe_vllm_env: GPUs"},
      {"--tp", "moe_vllm_env: tensor parallel"},
      {"--pp", "moe_vllm_env: pipeline stages"},
      {"--max-len", "moe_vllm_env: tokens of a sequence"},
      {"--max-seqs", "moe_vllm_env: sequences at once"},
      {"--gpu-util", "moe_vllm_env: share of the memory"}};
  for (const auto& [name, help] : passed_on)
    add_text(*app, name, help, "VALUE", [o](const std::string& option, const std::string& text) {
      o->given.push_back({option, text});
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
        for (const auto& row : targets.rows) print_text(std::get<std::string>(row[0]) + "\n");
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

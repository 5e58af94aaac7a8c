#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/core/error.h>
#include <shunt/scenario/read.h>
#include <shunt/scenario/run.h>
#include <shunt/scenario/workloads.h>

#include "commands.h"

namespace shunt::cli {
namespace {

namespace fs = std::filesystem;

struct Typed {
  std::string system_config;
  std::string tests_dir;
  std::string test_scenario;
  std::string hook_dir;
  std::string output_dir;
  std::string result_dir;
  std::string shunt;
  std::string path;
  std::string what = "workloads";
  std::int64_t jobs = 1;
  bool single_sbatch = false;
  bool unchecked = false;
  bool archive_failed = false;
  bool quiet = false;
};

scenario::System system_of(const Typed& typed) {
  std::string path = typed.system_config;
  for (const char* name : {"SHUNT_SYSTEM_CONFIG", "CLOUDAI_SYSTEM_CONFIG"})
    if (const char* value = std::getenv(name); path.empty() && value != nullptr) path = value;
  return path.empty() ? scenario::System{} : scenario::read_system(path);
}

scenario::RunOptions options_of(const Typed& typed) {
  if (typed.single_sbatch)
    throw Error(Errc::unavailable,
                "--single-sbatch is not there yet: each test gets an allocation of its own");
  scenario::RunOptions options;
  options.shunt = typed.shunt.empty() ? fs::read_symlink("/proc/self/exe").string() : typed.shunt;
  options.output_dir = typed.output_dir;
  options.resume = typed.result_dir;
  options.jobs = typed.jobs;
  options.archive_failed = typed.archive_failed;
  if (!typed.quiet)
    options.say = [](const std::string& line) { fmt::print("{}\n", line), std::fflush(stdout); };
  return options;
}

int conclude(const scenario::CampaignEnd& end) {
  std::int64_t passed = 0;
  for (const scenario::Finished& run : end.summary.runs)
    passed += run.status == scenario::Status::passed ? 1 : 0;
  fmt::print("{} of {} runs passed: {}/{}.html\n", passed, end.summary.runs.size(), end.folder,
             end.summary.scenario);
  if (end.signal != 0) return 128 + end.signal;
  return end.summary.passed() ? 0 : 1;
}

int run(const Typed& typed) {
  const scenario::Scenario read =
      scenario::read_scenario(typed.test_scenario, typed.tests_dir, typed.hook_dir);
  return conclude(scenario::run_scenario(read, system_of(typed), options_of(typed)));
}

int dry_run(const Typed& typed) {
  const scenario::Scenario read =
      scenario::read_scenario(typed.test_scenario, typed.tests_dir, typed.hook_dir);
  fmt::print("{}\n", scenario::dry_run(read, system_of(typed), options_of(typed)));
  return 0;
}

int report(const Typed& typed) {
  const scenario::Summary summary = scenario::read_campaign(typed.result_dir);
  scenario::write_reports(typed.result_dir, summary);
  return conclude({.folder = typed.result_dir, .summary = summary, .signal = 0});
}

/// Reads one file as what it is. Empty: it is sound.
std::string trouble_of(const std::string& file, const Typed& typed) {
  try {
    switch (scenario::classify(file)) {
      case scenario::FileKind::system:
        (void)scenario::read_system(file);
        return {};
      case scenario::FileKind::test:
        (void)scenario::read_test(file);
        return {};
      case scenario::FileKind::scenario:
        (void)scenario::expand(scenario::read_scenario(file, typed.tests_dir, typed.hook_dir),
                               system_of(typed));
        return {};
      case scenario::FileKind::unknown:
        break;
    }
    return fmt::format(
        "{}: this is neither a system (scheduler), nor a test (test_template_name), nor a scenario "
        "([[Tests]])",
        file);
  } catch (const Error& error) {
    return error.what();
  }
}

int verify(const Typed& typed) {
  std::vector<std::string> files;
  if (fs::is_directory(typed.path)) {
    for (const auto& file : fs::recursive_directory_iterator(typed.path))
      if (file.path().extension() == ".toml") files.push_back(file.path().string());
    std::sort(files.begin(), files.end());
  } else {
    files.push_back(typed.path);
  }
  std::int64_t wrong = 0;
  for (const std::string& file : files)
    if (const std::string trouble = trouble_of(file, typed); !trouble.empty()) {
      ++wrong;
      fmt::print(stderr, "shunt: {}\n", trouble);
    }
  fmt::print("{} files, {} wrong\n", files.size(), wrong);
  if (files.empty())
    throw Error(Errc::invalid_argument, fmt::format("{}: there is no TOML file", typed.path));
  return wrong == 0 ? 0 : 1;
}

int list(const Typed& typed) {
  if (typed.what == "reports") {
    fmt::print(
        "summary.json  every run with status, reason and rows\nresults.csv   one line for each row\n"
        "junit.xml     a test case for each run\n<name>.html   a page\n");
    return 0;
  }
  if (typed.what == "agents") {
    fmt::print("grid_search  every combination of the values of a sweep\n");
    return 0;
  }
  if (typed.what == "tests") {
    for (const auto& [name, file] : scenario::list_tests(typed.tests_dir)) fmt::print("{}  {}\n", name, file);
    return 0;
  }
  fmt::print("{}", scenario::describe_workloads(typed.what == "workloads" ? "" : typed.what));
  return 0;
}

void add_inputs(CLI::App& app, Typed& typed) {
  app.add_option("--system-config", typed.system_config,
                 "System file (default: SHUNT_SYSTEM_CONFIG or CLOUDAI_SYSTEM_CONFIG, else this machine)")
      ->type_name("FILE");
  app.add_option("--tests-dir", typed.tests_dir,
                 "Folder of test files (default: `test` beside the scenario's folder)")
      ->type_name("DIR");
  app.add_option("--hook-dir", typed.hook_dir,
                 "Folder of hooks (default: `hook` beside the scenario's folder)")
      ->type_name("DIR");
}

void add_run_options(CLI::App& app, Typed& typed) {
  add_inputs(app, typed);
  app.add_option("--test-scenario", typed.test_scenario, "Scenario file")->required()->type_name("FILE");
  app.add_option("--output-dir", typed.output_dir,
                 "Where folders of campaigns are made (default: the system's output_path, else ./results)")
      ->type_name("DIR");
  app.add_option("--shunt", typed.shunt, "Path of this command on the nodes (default: its path here)")
      ->type_name("FILE");
  app.add_flag("--single-sbatch", typed.single_sbatch, "One allocation for all tests (not there yet)");
  app.add_flag("--enable-cache-without-check", typed.unchecked,
               "Accepted as CloudAI's: nothing is checked here before a job starts");
  app.add_flag("--quiet", typed.quiet, "Only the last line");
}

}  // namespace

void add_scenario(CLI::App& parent, Command& command) {
  CLI::App* app = parent.add_subcommand(
      "scenario", "Campaigns of tests, on this machine or by Slurm, from CloudAI's files or ours");
  app->require_subcommand(1);
  const auto typed = std::make_shared<Typed>();
  const auto does = [&command, typed](CLI::App* sub, int (*action)(const Typed&)) {
    sub->callback([&command, typed, action] { command = [typed, action] { return action(*typed); }; });
  };
  CLI::App* running = app->add_subcommand("run", "Run a scenario; status 1 if a run fails");
  add_run_options(*running, *typed);
  running
      ->add_option("--result-dir", typed->result_dir,
                   "Go on with the campaign of this folder: what passed is not repeated")
      ->type_name("DIR");
  running->add_option("--jobs", typed->jobs, "Tests that run side by side on this machine (default 1)")
      ->check(CLI::Range(1, 1024));
  running->add_flag("--archive-failed", typed->archive_failed,
                    "Pack a campaign that failed into FOLDER.tgz too");
  does(running, run);
  CLI::App* dry = app->add_subcommand("dry-run", "Write what run would start; Slurm need not be there");
  add_run_options(*dry, *typed);
  does(dry, dry_run);
  CLI::App* verifying =
      app->add_subcommand("verify", "Check TOML files of a folder, or one; status 1 if one is wrong")
          ->alias("verify-configs");
  add_inputs(*verifying, *typed);
  verifying->add_option("path", typed->path, "File or folder")
      ->required()
      ->type_name("PATH")
      ->check(CLI::ExistingPath);
  does(verifying, verify);
  CLI::App* reporting =
      app->add_subcommand("report", "Write the reports of a campaign again")->alias("generate-report");
  add_inputs(*reporting, *typed);
  reporting
      ->add_option("--test-scenario", typed->test_scenario,
                   "Accepted as CloudAI's: the folder says which it was")
      ->type_name("FILE");
  reporting->add_option("--result-dir", typed->result_dir, "Folder of the campaign")
      ->required()
      ->type_name("DIR");
  does(reporting, report);
  CLI::App* listing = app->add_subcommand("list", "Say what there is");
  add_inputs(*listing, *typed);
  listing
      ->add_option(
          "what", typed->what,
          "workloads (default), tests of --tests-dir, reports, agents, or a workload to see its keys")
      ->type_name("WHAT");
  does(listing, list);
}

}  // namespace shunt::cli

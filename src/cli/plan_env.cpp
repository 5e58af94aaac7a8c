#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/plan/environment.h>

#include "add_option.h"
#include "plan.h"

namespace shunt::cli {
namespace {

struct Options {
  plan::EnvironmentOptions environment;
  plan::Versions versions;
  std::string lint;  ///< File, or "-"
  bool lint_process = false;
  plan::Format format = plan::Format::text;
};

std::string read_input(const std::string& path) {
  if (path == "-") {
    std::string text;
    char buffer[4096];
    for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, n);
    return text;
  }
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw Error(Errc::io, fmt::format("{}: cannot read this file", path));
  return text;
}

int run(const Options& o) {
  if (o.lint.empty() && !o.lint_process) {
    if (o.environment.fabric.empty())
      throw Error(Errc::invalid_argument,
                  fmt::format("plan env: give --fabric ({}), --lint FILE or --lint-process",
                              fmt::join(plan::environment_fabrics(), ", ")));
    print_report(plan::report_environment(o.environment), o.format);
    return 0;
  }
  if (!o.lint.empty() && o.lint_process)
    throw Error(Errc::invalid_argument, "give --lint or --lint-process, not both");
  const std::string& fabric = o.environment.fabric;
  const auto& fabrics = plan::environment_fabrics();
  if (!fabric.empty() && std::find(fabrics.begin(), fabrics.end(), fabric) == fabrics.end())
    throw Error(Errc::invalid_argument,
                fmt::format("--fabric \"{}\": {}", fabric, allowed_names(fabric, fabrics)));
  const auto variables =
      o.lint_process ? plan::process_environment() : plan::parse_environment(read_input(o.lint), o.lint);
  const auto findings = plan::lint(variables, o.versions, fabric);
  print_report(plan::report_lint(findings, variables.size()), o.format);
  const bool wrong = std::any_of(findings.begin(), findings.end(), [](const plan::Finding& finding) {
    return finding.severity == plan::Severity::error;
  });
  return wrong ? 1 : 0;
}

}  // namespace

void add_plan_env(CLI::App& parent, Command& command) {
  const auto o = std::make_shared<Options>();
  CLI::App* app = parent.add_subcommand(
      "env",
      "Settings of NCCL, NVSHMEM, UCX, libfabric and vLLM for a fabric, and a linter of such settings");
  app->add_option("--fabric", o->environment.fabric,
                  fmt::format("What joins the GPUs: {}", fmt::join(plan::environment_fabrics(), ", ")))
      ->type_name("NAME");
  add_list(*app, "--library",
           fmt::format("Settings of these only: {}", fmt::join(plan::environment_libraries(), ", ")),
           o->environment.libraries);
  app->add_option("--model", o->environment.model, "For the commands")->type_name("NAME");
  add_whole(*app, "--ngpu", "GPUs, for the commands (8, nvl72 72, else 16)", o->environment.gpus, 1, 1 << 20);
  add_whole(*app, "--tp", "Tensor parallel, for the commands (1)", o->environment.tp, 1, 1 << 16);
  add_whole(*app, "--pp", "Pipeline stages, for the commands (1)", o->environment.pp, 1, 1 << 16);
  add_whole(*app, "--max-len", "Tokens of a sequence, for the commands (8192)", o->environment.max_len, 1,
            1 << 26);
  add_whole(*app, "--max-seqs", "Sequences at once, for the commands (256)", o->environment.max_seqs, 1,
            1 << 20);
  add_text(*app, "--gpu-util", "Share of the GPU's memory, for the commands (0.9)", "X",
           [o](const std::string& option, const std::string& text) {
             o->environment.gpu_util = parse_number(option, text, 0.01, 1.0);
           });
  app->add_option("--lint", o->lint, "Judges the NAME=value lines of this file, - for standard input")
      ->type_name("FILE");
  app->add_flag("--lint-process", o->lint_process, "Judges the variables of this process");
  const auto version = [&](const char* name, const char* help, plan::Version& value) {
    add_text(*app, name, help, "X.Y", [&value](const std::string& option, const std::string& text) {
      value = plan::parse_version(option, text);
    });
  };
  version("--nccl", "Version to judge by (2.30)", o->versions.nccl);
  version("--aws-ofi-nccl", "Version to judge by (1.16)", o->versions.aws_ofi_nccl);
  version("--libfabric", "Version to judge by (2.0)", o->versions.libfabric);
  version("--vllm", "Version to judge by (0.11)", o->versions.vllm);
  add_format(*app, o->format);
  app->callback([&command, o] { command = [o] { return run(*o); }; });
}

}  // namespace shunt::cli

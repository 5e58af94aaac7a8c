#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <map>
#include <sstream>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/scenario/nodes.h>

#include "local.h"
#include "process.h"

namespace shunt::scenario {
namespace {

constexpr std::chrono::seconds kQuery{30};

/// Lines of an output, without spaces around them.
std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  std::istringstream stream{std::string(text)};
  for (std::string line; std::getline(stream, line);) {
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos) continue;
    lines.push_back(line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1));
  }
  return lines;
}

/// NAME=value of scontrol's lines.
std::string field_of(const std::string& text, const std::string& name) {
  const std::string key = name + "=";
  for (std::size_t at = text.find(key); at != std::string::npos; at = text.find(key, at + 1)) {
    if (at > 0 && text[at - 1] != ' ' && text[at - 1] != '\n') continue;
    const std::size_t begin = at + key.size();
    return text.substr(begin, text.find_first_of(" \n", begin) - begin);
  }
  return {};
}

/// What nodes are, by sinfo; empty where it does not answer.
NodeStates node_states() {
  NodeStates states;
  const Output answer = output_of({"sinfo", "--noheader", "-o", "%P|%t|%u|%N"}, kQuery);
  const std::map<std::string, std::string> names = {{"idle", "idle"},
                                                    {"comp", "completing"},
                                                    {"alloc", "allocated"},
                                                    {"mix", "allocated"},
                                                    {"resv", "reserved"}};
  for (const std::string& line : lines_of(answer.out)) {
    std::istringstream cells(line);
    std::array<std::string, 4> cell;
    for (std::string& one : cell) std::getline(cells, one, '|');
    while (!cell[1].empty() && std::isalpha(static_cast<unsigned char>(cell[1].back())) == 0)
      cell[1].pop_back();
    const auto name = names.find(cell[1]);
    try {
      for (const std::string& node : parse_node_list(cell[3]))
        states[node] = name == names.end() ? cell[1] : name->second;
    } catch (const Error&) {
      // A line that names no nodes says nothing about them.
    }
  }
  return states;
}

bool slurm_knows_gpus() {
  const Output answer = output_of({"scontrol", "show", "config"}, kQuery);
  for (const std::string& line : lines_of(answer.out))
    if (line.starts_with("GresTypes")) return line.find("gpu") != std::string::npos;
  return true;
}

struct Job {
  std::string id;
  std::string folder;
  Site site;
  SlurmFiles files;
  std::int64_t failed_looks = 0;
};

class SlurmExecutor : public Executor {
 public:
  SlurmExecutor(const Scenario& scenario, const System& system, const RunOptions& options)
      : scenario_(scenario), system_(system), options_(options) {
    const Output sbatch = output_of({"sbatch", "--version"}, kQuery);
    if (sbatch.status != 0)
      throw Error(Errc::unavailable,
                  fmt::format("{}: the scheduler is slurm and sbatch is not there; dry-run needs no Slurm",
                              system.file));
    states_ = node_states();
    gpus_ = slurm_knows_gpus();
    accounting_ = output_of({"sacct", "--noheader", "-j", "1"}, kQuery).status == 0;
  }
  ~SlurmExecutor() override {
    for (const auto& [run, job] : jobs_)
      (void)output_of({"scancel", "--full", "--signal=KILL", job.id}, kQuery);
  }
  SlurmExecutor(const SlurmExecutor&) = delete;
  SlurmExecutor& operator=(const SlurmExecutor&) = delete;

  void start(std::size_t run, const Case& one, const TestEntry& entry, const std::string& folder) override {
    Job job;
    job.folder = folder;
    job.site = site_of(one, entry, system_, options_.shunt, folder, states_, gpus_);
    job.files = write_slurm_files(one, entry, scenario_, system_, job.site);
    const std::string& script = job.files.script;
    const Output answer = output_of({"sbatch", script}, kQuery);
    const std::string mark = "Submitted batch job ";
    const std::size_t at = answer.out.find(mark);
    if (answer.status != 0 || at == std::string::npos)
      throw Error(Errc::io, fmt::format("sbatch refused {}: {}", script,
                                        without_secrets(answer.err.empty() ? answer.out : answer.err)));
    const std::string rest = answer.out.substr(at + mark.size());
    job.id = rest.substr(0, rest.find_first_not_of("0123456789"));
    if (options_.say) options_.say(fmt::format("{}: job {}", one.label(), job.id));
    jobs_[run] = std::move(job);
  }

  Progress poll(std::size_t run) override {
    Job& job = jobs_.at(run);
    Progress progress;
    std::string details;
    const std::string state = look(job, details);
    progress.running = state == "RUNNING" || state == "COMPLETING";
    if (!is_terminal_state(state)) return progress;
    progress.ended = true;
    const std::string code = field_of(details, "ExitCode");
    progress.exit_code =
        code.empty() ? (state == "COMPLETED" ? 0 : 1) : std::strtol(code.c_str(), nullptr, 10);
    if (state != "COMPLETED") {
      progress.failure = fmt::format("job {} is in state {}{}", job.id, state,
                                     code.empty() ? "" : fmt::format(", exit code {}", code));
      if (progress.exit_code == 0) progress.exit_code = 1;
    }
    write_job(job, state, details);
    jobs_.erase(run);
    return progress;
  }

  void stop(std::size_t run, bool hard) override {
    const auto found = jobs_.find(run);
    if (found == jobs_.end()) return;
    if (hard)
      (void)output_of({"scancel", "--full", "--signal=KILL", found->second.id}, kQuery);
    else
      (void)output_of({"scancel", found->second.id}, kQuery);
  }

  [[nodiscard]] std::chrono::milliseconds interval() const override {
    return std::chrono::seconds(system_.monitor_interval);
  }
  [[nodiscard]] bool limits_time() const override { return true; }
  [[nodiscard]] std::int64_t width() const override { return INT64_MAX; }

 private:
  /// State of a job, and scontrol's line about it where it gave one. Transient errors are tried again, and then left
  /// for the next look.
  std::string look(Job& job, std::string& details) {
    constexpr int kTries = 3;
    std::string error;
    for (int i = 0; i < kTries; ++i) {
      const Output answer = output_of({"scontrol", "--oneliner", "show", "job", job.id}, kQuery);
      if (answer.status == 0) {
        job.failed_looks = 0;
        details = answer.out;
        return job_state(field_of(answer.out, "JobState"));
      }
      error = answer.err;
      if (accounting_) {
        const Output accounted = output_of({"sacct", "-j", job.id, "--format=State", "--noheader"}, kQuery);
        if (accounted.status == 0 && !lines_of(accounted.out).empty()) {
          job.failed_looks = 0;
          return job_state(accounted.out);
        }
      }
      if (!transient(error)) break;
      if (i + 1 < kTries)
        (void)output_of({"sleep", fmt::format("{}", system_.status_retry_pause_seconds)},
                        std::chrono::hours(1));
    }
    // A job that Slurm has forgotten will not come back.
    constexpr std::int64_t kForgotten = 3;
    if (++job.failed_looks < kForgotten) return {};
    throw Error(Errc::io,
                fmt::format("Slurm does not say how job {} stands: {}", job.id, without_secrets(error)));
  }

  [[nodiscard]] bool transient(const std::string& error) const {
    std::vector<std::string> patterns = {"Socket timed out", "slurm_load_jobs error"};
    patterns.insert(patterns.end(), system_.transient_errors.begin(), system_.transient_errors.end());
    return std::any_of(patterns.begin(), patterns.end(), [&error](const std::string& pattern) {
      return error.find(pattern) != std::string::npos;
    });
  }

  void write_job(const Job& job, const std::string& state, const std::string& details) const {
    std::vector<JobStep> steps;
    if (accounting_) {
      const Output answer = output_of(
          {"sacct", "-j", job.id, "--format=JobID,JobName,State,ExitCode,Start,End,ElapsedRAW,SubmitLine",
           "--delimiter=|", "-p", "--noheader"},
          kQuery);
      for (const std::string& line : lines_of(answer.out)) {
        std::istringstream cells(line);
        std::array<std::string, 8> cell;
        for (std::string& one : cell) std::getline(cells, one, '|');
        steps.push_back({cell[0], cell[1], cell[2], cell[3], cell[4], cell[5],
                         std::strtol(cell[6].c_str(), nullptr, 10), cell[7]});
      }
    }
    if (steps.empty())
      steps.push_back({job.id, field_of(details, "JobName"), state, field_of(details, "ExitCode"),
                       field_of(details, "StartTime"), field_of(details, "EndTime"),
                       elapsed(field_of(details, "RunTime")), ""});
    write_file(job.folder + "/slurm-job.toml",
               slurm_job_toml(steps, job.files.srun_command, job.files.test_command, job.site));
  }

  static std::int64_t elapsed(const std::string& text) {
    try {
      return parse_time_limit(text, TimeStyle::cloudai).count();
    } catch (const Error&) {
      return 0;
    }
  }

  const Scenario& scenario_;
  const System& system_;
  RunOptions options_;
  NodeStates states_;
  bool gpus_ = true;
  bool accounting_ = false;
  std::map<std::size_t, Job> jobs_;
};

}  // namespace

bool is_terminal_state(std::string_view state) noexcept {
  for (const std::string_view terminal :
       {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL",
        "DEADLINE", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL", "SPECIAL_EXIT"})
    if (state.substr(0, state.find_first_of(" +")) == terminal) return true;
  return false;
}

std::string job_state(std::string_view lines) {
  std::string ended;
  std::string other;
  std::istringstream words{std::string(lines)};
  for (std::string word; words >> word;) {
    // "CANCELLED by 0" and "CANCELLED+" are CANCELLED.
    std::string state = word.substr(0, word.find('+'));
    if (state.empty() || std::isupper(static_cast<unsigned char>(state[0])) == 0) continue;
    if (state == "RUNNING") return state;
    std::string& first = is_terminal_state(state) ? ended : other;
    if (first.empty()) first = state;
  }
  return other.empty() ? ended : other;
}

Site site_of(const Case& one, const TestEntry& entry, const System& system, const std::string& shunt,
             const std::string& folder, const NodeStates& states, bool gpu_directives) {
  Site site{.folder = folder,
            .shunt = shunt,
            .stamp = stamp_now(),
            .node_names = {},
            .gpu_directives = gpu_directives};
  if (!entry.nodes.empty()) site.node_names = resolve_nodes(system, entry.nodes, entry.exclude_nodes, states);
  (void)one;
  return site;
}

std::unique_ptr<Executor> make_slurm_executor(const Scenario& scenario, const System& system,
                                              const RunOptions& options) {
  return std::make_unique<SlurmExecutor>(scenario, system, options);
}

}  // namespace shunt::scenario

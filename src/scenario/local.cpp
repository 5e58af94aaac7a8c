#include "local.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <map>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/scenario/nodes.h>

#include "commands.h"
#include "process.h"
#include "shell.h"

namespace shunt::scenario {
namespace {

namespace fs = std::filesystem;
using Variables = std::vector<std::pair<std::string, std::string>>;

/// $NAME and ${NAME} in a value, by the variables before it and the environment.
std::string resolved(const std::string& text, const Variables& before) {
  std::string value = text;
  if (value.size() >= 2 && value.front() == '"' && value.back() == '"')
    value = value.substr(1, value.size() - 2);
  std::string out;
  for (std::size_t i = 0; i < value.size(); ++i) {
    const bool braces = i + 1 < value.size() && value[i + 1] == '{';
    std::size_t end = i + (braces ? 2 : 1);
    const std::size_t begin = end;
    while (end < value.size() &&
           (std::isalnum(static_cast<unsigned char>(value[end])) != 0 || value[end] == '_'))
      ++end;
    const bool named = value[i] == '$' && end > begin &&
                       std::isdigit(static_cast<unsigned char>(value[begin])) == 0 &&
                       (!braces || (end < value.size() && value[end] == '}'));
    if (!named) {
      out += value[i];
      continue;
    }
    const std::string name = value.substr(begin, end - begin);
    const char* found = std::getenv(name.c_str());
    std::string inserted = found == nullptr ? "" : found;
    for (const auto& [key, known] : before)
      if (key == name) inserted = known;
    out += inserted;
    i = braces ? end : end - 1;
  }
  return out;
}

Variables variables_of(const Case& one, const System& system) {
  Variables all;
  const auto set = [&all](const std::string& name, const std::string& text) {
    std::string value = resolved(text, all);
    for (auto& [key, old] : all)
      if (key == name) {
        old = std::move(value);
        return;
      }
    all.emplace_back(name, std::move(value));
  };
  for (const auto& [name, value] : system.env) set(name, value);
  for (const Argument& variable : one.definition.env) set(variable.name, to_text(variable.values.front()));
  return all;
}

class LocalExecutor : public Executor {
 public:
  LocalExecutor(const System& system, const RunOptions& options)
      : system_(system), shunt_(options.shunt), jobs_(options.jobs) {}
  ~LocalExecutor() override {
    for (const auto& [run, pid] : running_) {
      kill(-pid, SIGKILL);
      while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }
  LocalExecutor(const LocalExecutor&) = delete;
  LocalExecutor& operator=(const LocalExecutor&) = delete;

  void start(std::size_t run, const Case& one, const TestEntry& entry, const std::string& folder) override {
    ProcessStart start;
    start.words = local_command(one, entry, system_, shunt_, folder);
    start.folder = folder;
    start.variables = variables_of(one, system_);
    write_local_files(one, entry, system_, folder, start.words);
    running_[run] = start_process(start);
  }

  Progress poll(std::size_t run) override {
    Progress progress{.running = true, .ended = false, .exit_code = 0, .failure = {}};
    const pid_t pid = running_.at(run);
    int status = 0;
    const pid_t got = waitpid(pid, &status, WNOHANG);
    if (got == 0 || (got < 0 && errno == EINTR)) return progress;
    running_.erase(run);
    // Children that outlive the program hold its files open and the machine busy.
    kill(-pid, SIGKILL);
    progress.running = false;
    progress.ended = true;
    if (got > 0 && WIFEXITED(status)) {
      progress.exit_code = WEXITSTATUS(status);
      if (progress.exit_code != 0)
        progress.failure = fmt::format("the command ended with status {}", progress.exit_code);
    } else {
      const int signal = got > 0 && WIFSIGNALED(status) ? WTERMSIG(status) : 0;
      progress.exit_code = 128 + signal;
      progress.failure = fmt::format("the command was ended by signal {} ({})", signal, strsignal(signal));
    }
    return progress;
  }

  void stop(std::size_t run, bool hard) override {
    const auto found = running_.find(run);
    if (found != running_.end()) kill(-found->second, hard ? SIGKILL : SIGTERM);
  }

  [[nodiscard]] std::chrono::milliseconds interval() const override { return std::chrono::milliseconds(20); }
  [[nodiscard]] bool limits_time() const override { return false; }
  [[nodiscard]] std::int64_t width() const override { return jobs_; }

 private:
  const System& system_;
  std::string shunt_;
  std::int64_t jobs_;
  std::map<std::size_t, pid_t> running_;
};

std::string host_name() {
  std::string name(256, '\0');
  if (gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  name.resize(name.find('\0'));
  return name;
}

}  // namespace

std::string stamp_now() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::string text(16, '\0');
  text.resize(std::strftime(text.data(), text.size(), "%Y%m%d_%H%M%S", &local));
  return text;
}

void write_local_files(const Case& one, const TestEntry& entry, const System& system,
                       const std::string& folder, const std::vector<std::string>& words) {
  write_file(folder + "/env_vars.sh", env_vars(one, system));
  if (one.definition.workload == Workload::deepep_benchmark ||
      one.definition.workload == Workload::moe_benchmark)
    write_file(folder + "/config.yaml", config_yaml(one));
  const std::string line = shell_words(words);
  const Site site{.folder = folder, .shunt = {}, .stamp = {}, .node_names = {}, .gpu_directives = false};
  write_file(folder + "/test-run.toml", test_run_toml(one, entry, system, site, line, line));
  std::error_code code;
  fs::create_directories(folder + "/metadata", code);
  if (code)
    throw Error(Errc::io, fmt::format("{}/metadata: cannot make this folder: {}", folder, code.message()));
  // The machine does not change between tests, so it is asked once.
  static const std::string metadata =
      output_of({"bash", "-c", std::string(metadata_script())}, std::chrono::seconds(20)).out;
  write_file(fmt::format("{}/metadata/node-{}.toml", folder, host_name()), metadata);
}

std::unique_ptr<Executor> make_local_executor(const Scenario& scenario, const System& system,
                                              const RunOptions& options) {
  if (!scenario.pre_test.empty() || !scenario.post_test.empty())
    throw Error(Errc::unavailable,
                fmt::format("{}: pre_test and post_test are parts of a batch script; without Slurm make them "
                            "tests, and let the others depend on them",
                            scenario.file));
  return std::make_unique<LocalExecutor>(system, options);
}

}  // namespace shunt::scenario

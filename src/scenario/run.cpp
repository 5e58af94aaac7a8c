#include <shunt/scenario/run.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <map>
#include <thread>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/scenario/generate.h>
#include <shunt/scenario/nodes.h>

#include "commands.h"
#include "local.h"
#include "matrices.h"
#include "process.h"
#include "toml_reader.h"

namespace shunt::scenario {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

/// How long what is asked to end may take before it is ended.
constexpr std::chrono::seconds kGrace{5};

volatile std::sig_atomic_t caught = 0;
volatile std::sig_atomic_t caught_times = 0;

extern "C" void note_signal(int signal) {
  caught = signal;
  caught_times = caught_times + 1;
}

/// Notes the signals that end a campaign while it lives.
class Signals {
 public:
  Signals() {
    caught = 0;
    caught_times = 0;
    struct sigaction action {};
    action.sa_handler = note_signal;
    sigemptyset(&action.sa_mask);
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &old_[i]);
  }
  ~Signals() {
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &old_[i], nullptr);
  }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

 private:
  static constexpr std::array kSignals = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
  std::array<struct sigaction, kSignals.size()> old_{};
};

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::string text(32, '\0');
  text.resize(std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &utc));
  return text;
}

void make_folder(const std::string& path) {
  std::error_code code;
  fs::create_directories(path, code);
  if (code) throw Error(Errc::io, fmt::format("{}: cannot make this folder: {}", path, code.message()));
}

/// A folder for a campaign that did not exist before: <scenario>_<time>, with a number where that is there already.
std::string new_folder(const Scenario& scenario, const System& system, const RunOptions& options) {
  const std::string above = fs::absolute(options.output_dir.empty() ? system.output_path : options.output_dir)
                                .lexically_normal()
                                .string();
  make_folder(above);
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  std::string time(32, '\0');
  time.resize(std::strftime(time.data(), time.size(), "%Y-%m-%d_%H-%M-%S", &local));
  constexpr int kTries = 1000;
  for (int i = 1; i < kTries; ++i) {
    std::string folder =
        fmt::format("{}/{}_{}{}", above, scenario.name, time, i == 1 ? "" : fmt::format(".{}", i));
    std::error_code code;
    if (fs::create_directory(folder, code)) return folder;
    if (code) throw Error(Errc::io, fmt::format("{}: cannot make this folder: {}", folder, code.message()));
  }
  throw Error(Errc::io, fmt::format("{}: there are too many campaigns of this second", above));
}

/// A run of a campaign, from waiting to its end.
struct Run {
  Case what;
  Finished end;
  enum class Stage { waiting, started, ended } stage = Stage::waiting;
  bool running = false;
  Clock::time_point began;
  Clock::time_point asked;  ///< to end
  bool stopping = false;
  bool killed = false;
  std::string stop_reason;    ///< empty: it ended by itself
  bool stopped_well = false;  ///< its end was part of the plan
};

class Campaign {
 public:
  Campaign(const Scenario& scenario, const System& system, const RunOptions& options)
      : scenario_(scenario), system_(system), options_(options) {
    for (Case& one : expand(scenario, system)) {
      Run run;
      run.end.label = one.label();
      run.end.id = one.id;
      run.end.iteration = one.iteration;
      run.end.step = one.step;
      run.end.name = one.definition.name;
      run.end.template_name = one.definition.template_name;
      run.end.folder = one.folder();
      run.end.fingerprint = fingerprint(one, scenario.tests[one.test]);
      run.end.point = one.point;
      run.what = std::move(one);
      runs_.push_back(std::move(run));
    }
    folder_ = options.resume.empty() ? new_folder(scenario, system, options)
                                     : fs::absolute(options.resume).lexically_normal().string();
    if (folder_.ends_with('/')) folder_.pop_back();
  }

  CampaignEnd go(Executor& executor) {
    if (!options_.resume.empty()) take_up();
    const Signals signals;
    stamp_ = stamp_now();
    write();
    for (;;) {
      if (caught != 0) interrupt(executor);
      bool changed = false;
      for (std::size_t i = 0; i < runs_.size(); ++i) changed = advance(executor, i) || changed;
      const bool over = std::all_of(runs_.begin(), runs_.end(),
                                    [](const Run& run) { return run.stage == Run::Stage::ended; });
      if (changed) write();
      if (over) break;
      if (!changed) pause(executor.interval());
    }
    return {folder_, summary(), caught};
  }

  [[nodiscard]] const std::string& folder() const { return folder_; }
  [[nodiscard]] std::vector<Run>& runs() { return runs_; }

 private:
  enum class Test { waiting, started, passed, failed };

  [[nodiscard]] Summary summary() const {
    Summary all{.scenario = scenario_.name, .system = system_.name, .started = started_, .runs = {}};
    for (const Run& run : runs_) all.runs.push_back(run.end);
    return all;
  }

  void write() const { write_reports(folder_, summary()); }

  void say(const std::string& line) const {
    if (options_.say) options_.say(line);
  }

  /// Runs of an earlier campaign count where they passed and would be the same now.
  void take_up() {
    const Summary earlier = read_campaign(folder_);
    if (earlier.scenario != scenario_.name)
      throw Error(Errc::invalid_argument, fmt::format("{} holds the scenario \"{}\", not \"{}\"", folder_,
                                                      earlier.scenario, scenario_.name));
    started_ = earlier.started;
    for (Run& run : runs_) {
      const auto found = read_case(folder_ + "/" + run.end.folder);
      if (!found || found->status != Status::passed || found->fingerprint != run.end.fingerprint) continue;
      run.end = *found;
      run.stage = Run::Stage::ended;
      say(fmt::format("{}: passed before", run.end.label));
    }
  }

  void pause(std::chrono::milliseconds interval) const {
    // In parts, so that a signal is answered soon.
    constexpr std::chrono::milliseconds kPart{50};
    for (auto left = interval; left.count() > 0 && caught == 0; left -= kPart)
      std::this_thread::sleep_for(std::min(left, kPart));
    if (caught != 0) std::this_thread::sleep_for(kPart);
  }

  [[nodiscard]] Test state_of(const std::string& id) const {
    bool all_ended = true;
    bool failed = false;
    bool begun = false;
    for (const Run& run : runs_) {
      if (run.end.id != id) continue;
      all_ended = all_ended && run.stage == Run::Stage::ended;
      begun = begun || run.running || run.stage == Run::Stage::ended;
      failed = failed || (run.stage == Run::Stage::ended && run.end.status != Status::passed);
    }
    if (all_ended) return failed ? Test::failed : Test::passed;
    return begun ? Test::started : Test::waiting;
  }

  bool advance(Executor& executor, std::size_t at) {
    Run& run = runs_[at];
    if (run.stage == Run::Stage::ended) return false;
    if (run.stage == Run::Stage::started) return watch(executor, at);
    const TestEntry& entry = scenario_.tests[run.what.test];
    bool partner = false;
    for (const Dependency& edge : entry.dependencies) {
      const Test other = state_of(edge.id);
      if (edge.type == DependencyType::end_post_comp) continue;
      if (other == Test::failed && scenario_.job_status_check) {
        finish(run, Status::skipped, fmt::format("it depends on \"{}\", which did not pass", edge.id));
        return true;
      }
      const bool completed = other == Test::passed || other == Test::failed;
      if (edge.type == DependencyType::start_post_comp ? !completed : other == Test::waiting) return false;
      partner = partner || (edge.type == DependencyType::start_post_init && !completed);
    }
    // Iterations and points of a test come one after the other.
    for (std::size_t i = 0; i < at; ++i)
      if (runs_[i].what.test == run.what.test && runs_[i].stage != Run::Stage::ended) return false;
    const auto under_way = std::count_if(runs_.begin(), runs_.end(),
                                         [](const Run& one) { return one.stage == Run::Stage::started; });
    // A test that is to run beside another one must not wait for its place.
    if (under_way >= executor.width() && !partner) return false;
    begin(executor, at);
    return true;
  }

  void begin(Executor& executor, std::size_t at) {
    Run& run = runs_[at];
    const std::string folder = folder_ + "/" + run.end.folder;
    run.began = Clock::now();
    run.end.rows.clear();
    try {
      // What an earlier try left would be taken for results of this one.
      std::error_code ignored;
      fs::remove_all(folder, ignored);
      make_folder(folder);
      executor.start(at, run.what, scenario_.tests[run.what.test], folder);
      run.stage = Run::Stage::started;
      run.running = !executor.limits_time();
      say(fmt::format("{}: started", run.end.label));
    } catch (const Error& error) {
      // Also where a failure is expected: that of the command is meant.
      finish(run, Status::failed, error.what());
    }
  }

  bool watch(Executor& executor, std::size_t at) {
    Run& run = runs_[at];
    const TestEntry& entry = scenario_.tests[run.what.test];
    Progress progress;
    try {
      progress = executor.poll(at);
    } catch (const Error& error) {
      progress.ended = true;
      progress.exit_code = 1;
      progress.failure = error.what();
    }
    run.running = run.running || progress.running;
    if (progress.ended) {
      conclude(run, progress);
      return true;
    }
    const auto now = Clock::now();
    if (!run.stopping) {
      for (const Dependency& edge : entry.dependencies)
        if (edge.type == DependencyType::end_post_comp &&
            (state_of(edge.id) == Test::passed || state_of(edge.id) == Test::failed))
          stop(executor, at, fmt::format("ended since \"{}\" completed", edge.id), true);
      if (!run.stopping && entry.time_limit && !executor.limits_time() && now - run.began > *entry.time_limit)
        stop(executor, at,
             fmt::format("its time limit of {} has passed", format_time_limit(*entry.time_limit)), false);
    }
    if (run.stopping && !run.killed && now - run.asked > kGrace) {
      run.killed = true;
      executor.stop(at, true);
    }
    return false;
  }

  void stop(Executor& executor, std::size_t at, const std::string& reason, bool well) {
    Run& run = runs_[at];
    run.stopping = true;
    run.stop_reason = reason;
    run.stopped_well = well;
    run.asked = Clock::now();
    executor.stop(at, false);
  }

  void interrupt(Executor& executor) {
    for (std::size_t i = 0; i < runs_.size(); ++i) {
      Run& run = runs_[i];
      if (run.stage == Run::Stage::waiting)
        finish(run, Status::not_run, fmt::format("signal {} ended the campaign", static_cast<int>(caught)));
      if (run.stage != Run::Stage::started) continue;
      if (!run.stopping)
        stop(executor, i, fmt::format("signal {} ended the campaign", static_cast<int>(caught)), false);
      run.stopped_well = false;
      if (caught_times > 1 && !run.killed) {
        run.killed = true;
        executor.stop(i, true);
      }
    }
  }

  void conclude(Run& run, const Progress& progress) {
    const std::string folder = folder_ + "/" + run.end.folder;
    run.end.exit_code = progress.exit_code;
    redact(folder + "/stdout.txt");
    redact(folder + "/stderr.txt");
    if (run.stopping) {
      finish(run,
             run.stopped_well ? Status::passed
             : caught != 0    ? Status::interrupted
                              : Status::failed,
             run.stop_reason);
      return;
    }
    if (run.what.definition.expect_failure) {
      const bool failed = !progress.failure.empty();
      finish(run, failed ? Status::passed : Status::failed,
             failed ? "it failed, as expected: " + progress.failure
                    : "a failure is expected, and the command ended well");
      return;
    }
    if (!progress.failure.empty()) {
      finish(run, Status::failed, progress.failure);
      return;
    }
    std::string why;
    try {
      run.end.rows = collect_rows(run.what, scenario_.tests[run.what.test], system_, folder, stamp_);
      add_matrices(run, folder);
      why = judge(run.what, run.end.rows, folder);
    } catch (const Error& error) {
      why = error.what();
    } catch (const fs::filesystem_error& error) {
      why = error.what();
    }
    finish(run, why.empty() ? Status::passed : Status::failed, why);
  }

  /// Beside results.json of our benchmark: what it moved.
  void add_matrices(const Run& run, const std::string& folder) const {
    const Workload workload = run.what.definition.workload;
    const bool ours = system_.scheduler == Scheduler::local || !in_container(run.what);
    if (!ours || run.end.rows.empty() ||
        (workload != Workload::deepep_benchmark && workload != Workload::deepep_scripts &&
         workload != Workload::moe_benchmark))
      return;
    // With another choice of experts they would be those of another run.
    for (const auto& [key, value] : run.what.definition.extra_cmd_args)
      if (key == "--routing" || key == "--seed" || key == "--input") return;
    const std::int64_t ranks =
        run.what.num_nodes * ranks_per_node(run.what, scenario_.tests[run.what.test], system_);
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().filename().string().starts_with("benchmark_"))
        write_matrices(run.what, ranks, entry.path().string());
  }

  /// What a program printed of the environment's secrets does not stay.
  static void redact(const std::string& path) {
    std::error_code code;
    constexpr std::uintmax_t kLargest = 256U << 20U;
    const std::uintmax_t size = fs::file_size(path, code);
    if (code || size == 0 || size > kLargest) return;
    const std::string text = detail::read_text_file(path);
    if (std::string clean = without_secrets(text); clean != text) write_file(path, clean);
  }

  void finish(Run& run, Status status, const std::string& reason) {
    const bool started = run.stage == Run::Stage::started;
    run.stage = Run::Stage::ended;
    run.running = false;
    run.end.status = status;
    run.end.reason = without_secrets(reason);
    run.end.elapsed_s = started ? std::chrono::duration<double>(Clock::now() - run.began).count() : 0;
    const std::string folder = folder_ + "/" + run.end.folder;
    make_folder(folder);
    write_case(folder, run.end);
    say(fmt::format("{}: {}{}{}", run.end.label, status_name(status), run.end.reason.empty() ? "" : ": ",
                    run.end.reason));
  }

  const Scenario& scenario_;
  const System& system_;
  const RunOptions& options_;
  std::string folder_;
  std::string started_ = utc_now();
  std::string stamp_;
  std::vector<Run> runs_;
};

void archive(const std::string& folder) {
  const fs::path path(folder);
  constexpr std::chrono::minutes kLongest{30};
  const Output packed =
      output_of({"tar", "-czf", folder + ".tgz", "-C", path.parent_path().string(), path.filename().string()},
                kLongest);
  if (packed.status != 0)
    throw Error(Errc::io,
                fmt::format("{}.tgz: tar ended with status {}: {}", folder, packed.status, packed.err));
}

}  // namespace

CampaignEnd run_scenario(const Scenario& scenario, const System& system, const RunOptions& options) {
  const std::unique_ptr<Executor> executor = system.scheduler == Scheduler::slurm
                                                 ? make_slurm_executor(scenario, system, options)
                                                 : make_local_executor(scenario, system, options);
  Campaign campaign(scenario, system, options);
  CampaignEnd end = campaign.go(*executor);
  if (options.archive_failed && !end.summary.passed()) archive(end.folder);
  return end;
}

std::string dry_run(const Scenario& scenario, const System& system, const RunOptions& options) {
  Campaign campaign(scenario, system, options);
  for (Run& run : campaign.runs()) {
    const TestEntry& entry = scenario.tests[run.what.test];
    const std::string folder = campaign.folder() + "/" + run.end.folder;
    make_folder(folder);
    if (system.scheduler == Scheduler::slurm)
      (void)write_slurm_files(run.what, entry, scenario, system,
                              site_of(run.what, entry, system, options.shunt, folder, {}, true));
    else
      write_local_files(run.what, entry, system, folder,
                        local_command(run.what, entry, system, options.shunt, folder));
    if (options.say) options.say(fmt::format("{}: {}", run.end.label, folder));
  }
  return campaign.folder();
}

}  // namespace shunt::scenario

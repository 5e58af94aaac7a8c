#pragma once

#include <functional>
#include <string>

#include <shunt/scenario/results.h>

namespace shunt::scenario {

struct RunOptions {
  std::string shunt;            ///< path of the command `shunt`
  std::string output_dir;       ///< folders of campaigns are made here; empty: the system's output_path
  std::string resume;           ///< folder of a campaign to go on with; empty: a new one
  bool archive_failed = false;  ///< a failed campaign also becomes <folder>.tgz
  std::int64_t jobs = 1;        ///< tests that run side by side on this machine; Slurm has its own queue
  std::function<void(const std::string&)> say;  ///< is given a line for each thing that happens; may be empty
};

struct CampaignEnd {
  std::string folder;
  Summary summary;
  int signal = 0;  ///< that ended it, 0: none
};

/// Runs a scenario: locally, where this machine pretends to be the nodes of a test, or by sbatch. Tests start once what
/// they depend on allows it; dependents of a failed test are skipped. Runs that passed in a campaign that is resumed,
/// and that would be the same now, are not repeated. SIGINT, SIGTERM, SIGHUP and SIGQUIT stop what runs, with its
/// children, and write all results; a second one does so at once.
/// Errors:  Errc::io where a folder or file cannot be written, Errc::unavailable where sbatch is missing.
/// Threads: one call at a time in a process, since it handles the process's signals.
[[nodiscard]] CampaignEnd run_scenario(const Scenario& scenario, const System& system,
                                       const RunOptions& options);

/// Writes what run_scenario would, without running anything; Slurm need not be there.
/// Result: the folder of the campaign.
[[nodiscard]] std::string dry_run(const Scenario& scenario, const System& system, const RunOptions& options);

/// Words for the state of a Slurm job.
[[nodiscard]] bool is_terminal_state(std::string_view state) noexcept;
/// The state of a job from the lines of its steps, as sacct or scontrol print them: "" where there is none, RUNNING
/// where one is, else the first.
[[nodiscard]] std::string job_state(std::string_view lines);

}  // namespace shunt::scenario

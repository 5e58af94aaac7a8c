#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <shunt/scenario/plan.h>

namespace shunt::scenario {

/// What a batch script depends on besides the case.
struct Site {
  std::string folder;                   ///< of the case, absolute
  std::string shunt;                    ///< path of the command `shunt` on the nodes
  std::string stamp;                    ///< YYYYmmdd_HHMMSS, for the job's name
  std::vector<std::string> node_names;  ///< empty: any nodes, as many as the case needs
  bool gpu_directives = true;           ///< Slurm knows GPUs (GresTypes)
};

/// The batch script of a case: lines and their order are CloudAI's.
[[nodiscard]] std::string sbatch_script(const Case& one, const TestEntry& entry, const Scenario& scenario,
                                        const System& system, const Site& site);

/// env_vars.sh: `export NAME="value"` a line.
[[nodiscard]] std::string env_vars(const Case& one, const System& system);

/// hostfile.txt: every node once for each task; empty without node names.
[[nodiscard]] std::string hostfile(const System& system, const Site& site);

/// test-run.toml.
[[nodiscard]] std::string test_run_toml(const Case& one, const TestEntry& entry, const System& system,
                                        const Site& site, const std::string& test_command,
                                        const std::string& full_command);

/// A step of a job, or the job, as sacct tells it.
struct JobStep {
  std::string id;  ///< "12", "12.batch", "12.0"
  std::string name;
  std::string state = "UNKNOWN";
  std::string exit_code = "0";
  std::string start;
  std::string end;
  std::int64_t elapsed_s = 0;
  std::string submit_line;
};

/// slurm-job.toml. The first step is the job; without steps it is a job that never was.
[[nodiscard]] std::string slurm_job_toml(const std::vector<JobStep>& steps, const std::string& srun_command,
                                         const std::string& test_command, const Site& site);

/// The program that writes metadata/node-NAME.toml on each node.
[[nodiscard]] std::string_view metadata_script();

/// What was written for a case.
struct SlurmFiles {
  std::string script;        ///< path of the batch script
  std::string srun_command;  ///< its main srun
  std::string test_command;  ///< what that runs
};

/// Writes all files of a case for Slurm into its folder, which is made, and the metadata program into the install path.
/// Errors: Errc::io where a file cannot be written.
SlurmFiles write_slurm_files(const Case& one, const TestEntry& entry, const Scenario& scenario,
                             const System& system, const Site& site);

/// Replaces a file by a text, so that a reader sees the old or the new. Errors: Errc::io
void write_file(const std::string& path, std::string_view text);

}  // namespace shunt::scenario

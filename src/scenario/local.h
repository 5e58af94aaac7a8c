#pragma once

#include <memory>

#include "executor.h"

#include <shunt/scenario/generate.h>
#include <shunt/scenario/nodes.h>
#include <shunt/scenario/run.h>

namespace shunt::scenario {

/// Runs tests as processes of this machine.
[[nodiscard]] std::unique_ptr<Executor> make_local_executor(const Scenario& scenario, const System& system,
                                                            const RunOptions& options);

/// Runs tests by sbatch. Errors: Errc::unavailable where sbatch is not there.
[[nodiscard]] std::unique_ptr<Executor> make_slurm_executor(const Scenario& scenario, const System& system,
                                                            const RunOptions& options);

/// Now as YYYYmmdd_HHMMSS, local time.
[[nodiscard]] std::string stamp_now();

/// Writes what a run on this machine leaves besides its output: env_vars.sh, config.yaml, test-run.toml, metadata.
void write_local_files(const Case& one, const TestEntry& entry, const System& system,
                       const std::string& folder, const std::vector<std::string>& words);

/// A site for a case of a dry run, or of a job: nodes are resolved by what Slurm says of them, where it is there.
[[nodiscard]] Site site_of(const Case& one, const TestEntry& entry, const System& system,
                           const std::string& shunt, const std::string& folder, const NodeStates& states,
                           bool gpu_directives);

}  // namespace shunt::scenario

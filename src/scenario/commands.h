#pragma once

#include <string>
#include <vector>

#include <shunt/scenario/plan.h>

namespace shunt::scenario {

/// Whether the case runs in a container that has its program; CloudAI's benchmarks without an image are run by ours.
[[nodiscard]] bool in_container(const Case& one);

/// Program and arguments of a case on this machine, which pretends to be its nodes. `folder` is the case's.
[[nodiscard]] std::vector<std::string> local_command(const Case& one, const TestEntry& entry,
                                                     const System& system, const std::string& shunt,
                                                     const std::string& folder);

/// The same as one process of a job that Slurm starts: no --ranks, no --nodes.
[[nodiscard]] std::vector<std::string> job_command(const Case& one, const std::string& shunt,
                                                   const std::string& folder);

/// What CloudAI's tests run in their containers, as it stands between the double quotes of bash -c "...".
[[nodiscard]] std::string container_command(const Case& one, std::int64_t num_nodes,
                                            const std::string& folder);

/// config.yaml of DeepEPBenchmark and MoEBenchmark, without a newline at its end, as CloudAI writes it.
[[nodiscard]] std::string config_yaml(const Case& one);

/// The shell's test of a hook that has run: prints 1 or 0.
[[nodiscard]] std::string success_check(const Case& one, const std::string& folder);

/// Whether a test of the MoE benchmark needs etcd.
[[nodiscard]] bool needs_etcd(const Case& one);

}  // namespace shunt::scenario

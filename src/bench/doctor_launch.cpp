#include "doctor_launch.h"

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/transport/launch_way.h>

extern char** environ;  // NOLINT: the one way to see all variables

namespace shunt::bench {
namespace {

/// By these launchers say which rank a process is.
constexpr const char* kLaunchVariables[] = {"MASTER_ADDR",
                                            "MASTER_PORT",
                                            "WORLD_SIZE",
                                            "WORLD_LOCAL_SIZE",
                                            "NODE_RANK",
                                            "RANK",
                                            "LOCAL_RANK",
                                            "LOCAL_WORLD_SIZE",
                                            "OMPI_COMM_WORLD_SIZE",
                                            "OMPI_COMM_WORLD_RANK",
                                            "OMPI_COMM_WORLD_LOCAL_RANK",
                                            "PMIX_RANK",
                                            "PMIX_NAMESPACE",
                                            "PMI_RANK",
                                            "PMI_SIZE",
                                            "SLURM_PROCID",
                                            "SLURM_NTASKS",
                                            "SLURM_JOB_NODELIST"};

/// Variables with these beginnings change what libraries do.
constexpr std::string_view kPrefixes[] = {"SHUNT_", "FI_",   "OMPI_",    "PMIX_MCA_", "PRTE_MCA_",
                                          "UCX_",   "NCCL_", "NVSHMEM_", "GLOO_"};

const char* get(const char* name) {
  return std::getenv(name);
}

std::string text_of(const char* name) {
  const char* text = get(name);
  return text == nullptr ? "" : text;
}

std::string meaning_of(const Launch& launch) {
  switch (launch.way) {
    case LaunchWay::local:
      return "by itself: a command starts all ranks on this machine";
    case LaunchWay::node:
      return fmt::format("as node {}: a command starts {} of {} ranks, which meet at {}:{}", launch.node_rank,
                         launch.local_size, launch.world_size, launch.master_addr, launch.master_port);
    case LaunchWay::rank:
      return fmt::format("as torchrun does: this process is rank {} of {}, local rank {}; they meet at {}:{}",
                         launch.rank, launch.world_size, launch.local_rank, launch.master_addr,
                         launch.master_port);
    case LaunchWay::mpi:
      return "by an MPI launcher: this process is one rank, and MPI knows which";
  }
  return {};
}

Record launch_record() {
  Record record("launch");
  try {
    const Launch launch = detect_launch(0, get);
    record.set("status", "ok")
        .set("reason", "")
        .set("way", launch_way_name(launch.way))
        .set("meaning", meaning_of(launch))
        .set("world_size", std::int64_t{launch.world_size});
  } catch (const Error& error) {
    record.set("status", "refused").set("reason", error.what());
  }
  std::vector<std::string> variables;
  for (const char* name : kLaunchVariables)
    if (get(name) != nullptr) variables.push_back(fmt::format("{}={}", name, text_of(name)));
  return record.set("variables", variables);
}

/// Path of a program, or empty where none of the folders of PATH has it.
std::string find_program(const std::string& name) {
  std::string_view path = get("PATH") == nullptr ? "" : get("PATH");
  while (!path.empty()) {
    const std::size_t end = std::min(path.find(':'), path.size());
    std::string candidate = fmt::format("{}/{}", path.substr(0, end), name);
    if (end > 0 && access(candidate.c_str(), X_OK) == 0) return candidate;
    path.remove_prefix(std::min(end + 1, path.size()));
  }
  return {};
}

Record slurm_record() {
  const std::string srun = find_program("srun");
  Record record("slurm");
  return record.set("present", !srun.empty())
      .set("srun", srun.empty() ? "srun is not on the PATH" : srun)
      .set("in_job", get("SLURM_JOB_ID") != nullptr)
      .set("job_id", text_of("SLURM_JOB_ID"));
}

/// 0 where a child could enter new namespaces, else what the system said.
int try_namespaces(int flags) {
  const pid_t child = fork();
  if (child == 0) _exit(unshare(flags) == 0 ? 0 : errno & 0x7f);
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return ECHILD;
  return WEXITSTATUS(status);
}

Record namespace_record() {
  const int as_it_is = try_namespaces(CLONE_NEWNET);
  const int as_user = as_it_is == 0 ? 0 : try_namespaces(CLONE_NEWUSER | CLONE_NEWNET);
  Record record("namespaces");
  return record.set("available", as_user == 0)
      .set("network",
           as_it_is == 0 ? "network namespaces can be made: tests of networks run here"
           : as_user == 0
               ? "network namespaces can be made inside a user namespace (unshare -rn)"
               : fmt::format("network namespaces cannot be made, so tests of networks are skipped: {}",
                             std::strerror(as_user)));
}

}  // namespace

std::vector<Record> examine_launch() {
  return {launch_record(), slurm_record(), namespace_record()};
}

std::vector<Record> examine_environment() {
  std::vector<Record> records;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view variable(*entry);
    if (std::none_of(std::begin(kPrefixes), std::end(kPrefixes),
                     [&](std::string_view prefix) { return variable.starts_with(prefix); }))
      continue;
    const std::size_t equals = std::min(variable.find('='), variable.size());
    Record record("environment");
    record.set("name", std::string(variable.substr(0, equals)))
        .set("value", std::string(variable.substr(std::min(equals + 1, variable.size()))));
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace shunt::bench

#pragma once

#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/plan/report.h>

namespace shunt::plan {

/// nvlink (one node), nvl72, ib, ethernet (RoCE), efa.
[[nodiscard]] const std::vector<std::string>& environment_fabrics();
/// nccl, nvshmem, ucx, libfabric, vllm, sglang.
[[nodiscard]] const std::vector<std::string>& environment_libraries();

struct EnvironmentOptions {
  std::string fabric;
  std::vector<std::string> libraries;  ///< Empty: all
  std::string model = "MODEL";         ///< For the commands
  std::int64_t gpus = 0;               ///< 0: 8, with nvl72 72, with networks 16
  std::int64_t tp = 1;
  std::int64_t pp = 1;
  std::int64_t max_len = 8192;
  std::int64_t max_seqs = 256;
  double gpu_util = 0.9;
};

/// Variables to set with the reason for each, commands that show that the fabric works, and smoke tests.
/// Result: only what differs from a default for a reason; lint() finds nothing in it.
/// Errors: Errc::invalid_argument for unknown fabrics and libraries (with the nearest), and for counts where
///         gpus is not a multiple of tp * pp.
[[nodiscard]] Report report_environment(const EnvironmentOptions& options);

struct Version {
  std::int32_t major = 0;
  std::int32_t minor = 0;
  auto operator<=>(const Version&) const = default;
};
/// "2.27" or "2.27.3". Errors: Errc::invalid_argument with `option`.
[[nodiscard]] Version parse_version(std::string_view option, std::string_view text);

/// Which versions a finding holds for. The defaults are those that the tables were written for.
struct Versions {
  Version nccl{2, 30};
  Version aws_ofi_nccl{1, 16};
  Version libfabric{2, 0};
  Version vllm{0, 11};
};

struct Variable {
  std::string name;
  std::string value;
  std::int64_t line = 0;  ///< 0: of a process
};

enum class Severity { note, warning, error };

struct Finding {
  Severity severity = Severity::note;
  std::string variable;
  std::int64_t line = 0;
  std::string message;
};

/// Reads "NAME=value" lines, also with export, -x or --env before them, several on a line with those; # begins a
/// comment, quotes around a value are taken off.
/// Errors: Errc::io with path:line for a line that is none of these.
[[nodiscard]] std::vector<Variable> parse_environment(std::string_view text, const std::string& path);

/// Variables of this process that belong to a library that the linter knows.
[[nodiscard]] std::vector<Variable> process_environment();

/// Finds variables that do not exist, were removed or renamed, have values that are not allowed, have no effect
/// beside others or on `fabric` (empty: unknown), or contradict each other. In the order of the variables.
[[nodiscard]] std::vector<Finding> lint(const std::vector<Variable>& variables, const Versions& versions,
                                        const std::string& fabric);

[[nodiscard]] Report report_lint(const std::vector<Finding>& findings, std::size_t variables);

}  // namespace shunt::plan

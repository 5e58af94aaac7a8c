#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/transport/launch.h>

namespace shunt::programs {

/// What both programs take from the command line.
struct Options {
  LaunchOptions launch{.ranks = 0, .transport = "auto"};  ///< ranks 0: the launcher's, or 4
  std::string device = "auto";  ///< cpu, cuda, or auto: both, cuda where there is one
  std::string only{};           ///< Cases or points whose name contains it
  bool list = false;
  // Of the benchmark
  std::int64_t runs = 10;
  std::int64_t samples = 10;
  std::int64_t warmup = 10;
  double max_seconds = 5.0;  ///< For one point
  bool full_tokens = false;  ///< Every rank brings M tokens, not 1 to M
  std::int64_t dp_size = 1;
  std::string tsv{};
};

/// Reads the command line; `benchmark` decides which options there are.
/// Result: false where --help has been printed. Errors: Errc::invalid_argument.
[[nodiscard]] bool read_options(int argc, char** argv, bool benchmark, Options& options);

/// How this process was started, in a word or two: "mpirun", "4 local processes".
[[nodiscard]] std::string describe_launch(const LaunchSession& session, const Options& options);

/// The launch that the environment describes, with the number of ranks of a local one settled in `options`.
[[nodiscard]] Launch find_launch(Options& options);

/// Prints the error and returns the exit status: 2 for what the user can mend, 1 for the rest.
[[nodiscard]] int report_error(const char* program, const std::exception& error);

/// Settings of CUDA for ranks that share a GPU, where the environment has none; before CUDA starts.
void prepare_cuda();

/// Why nothing runs on GPUs here, or empty.
[[nodiscard]] std::string gpu_reason(const Options& options);

}  // namespace shunt::programs

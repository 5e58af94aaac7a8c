// Dispatch and combine as their users start them: mpirun -np 4 build/tests/test_all_to_all
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include <fmt/format.h>

#include <alltoall/sweep_run.h>
#include <shunt/core/error.h>
#include <shunt/transport/launch.h>
#include <shunt/transport/wrap.h>

#include "programs/gpu_case.h"
#include "programs/named_cases.h"
#include "programs/program.h"

namespace shunt::programs {
namespace {

/// One world for each case: a case that fails leaves nothing to the next one.
std::string run_case(LaunchSession& session, const Options& options, const NamedCase& one, bool on_gpu) {
  LaunchOptions launch = options.launch;
  if (on_gpu) launch.transport = "cuda_ipc";
  const std::vector<RankOutcome> outcomes = session.run(launch, [&](Transport& transport) {
    if (on_gpu) {
      run_gpu_case(transport, one.what);
    } else if (one.put_only && transport.capabilities().load_store) {
      const auto apart =
          make_delayed(transport, {.seed = one.what.seed, .probability = 0, .hide_load_store = true});
      sweep::run_case(*apart, one.what);
    } else {
      sweep::run_case(transport, one.what);
    }
    return 0;
  });
  std::string failures;
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.exit_status == 0) continue;
    failures += fmt::format("      rank {} ended with {}: {}\n", outcome.rank, outcome.exit_status,
                            outcome.message.empty() ? "no message" : outcome.message);
  }
  return failures;
}

struct Counts {
  std::int64_t passed = 0;
  std::int64_t failed = 0;
};

/// Result: false where the job cannot go on.
bool run_cases(LaunchSession& session, const Options& options, const std::vector<NamedCase>& cases,
               bool on_gpu, Counts& counts) {
  for (const NamedCase& one : cases) {
    // The transport of the GPUs has load and store.
    if (one.name.find(options.only) == std::string::npos || (on_gpu && one.put_only)) continue;
    const auto start = std::chrono::steady_clock::now();
    const std::string failures = run_case(session, options, one, on_gpu);
    const auto took = std::chrono::steady_clock::now() - start;
    (failures.empty() ? counts.passed : counts.failed) += 1;
    if (session.leads() || !failures.empty()) {
      fmt::print("{}  {} {:34} {:5} ms\n{}", failures.empty() ? "pass" : "FAIL", on_gpu ? "cuda" : "cpu ",
                 one.name, std::chrono::duration_cast<std::chrono::milliseconds>(took).count(), failures);
      std::fflush(stdout);
    }
    // Ranks of other processes may wait for this one.
    if (!failures.empty() && session.way() != LaunchWay::local) return false;
  }
  return true;
}

int run(int argc, char** argv) {
  Options options;
  if (!read_options(argc, argv, false, options)) return 0;
  const Launch launch = find_launch(options);
  LaunchSession session(launch);
  const std::int32_t ranks = session.world_size() > 0 ? session.world_size() : options.launch.ranks;
  const std::vector<NamedCase> cases = named_cases(ranks);
  if (options.list) {
    for (const NamedCase& one : cases) {
      if (session.leads()) fmt::print("{}\n", one.name);
    }
    return 0;
  }
  std::string no_gpu = gpu_reason(options);
  if (no_gpu.empty()) no_gpu = gpu_cases_missing();
  if (options.device == "cuda" && !no_gpu.empty()) throw Error(Errc::unavailable, "--device cuda: " + no_gpu);
  if (session.leads()) fmt::print("test_all_to_all: {}\n", describe_launch(session, options));
  Counts counts;
  bool goes_on = options.device == "cuda" || run_cases(session, options, cases, false, counts);
  if (goes_on && no_gpu.empty()) goes_on = run_cases(session, options, cases, true, counts);
  if (session.leads()) {
    if (!no_gpu.empty()) fmt::print("cuda: not run: {}\n", no_gpu);
    fmt::print("{} passed, {} failed\n", counts.passed, counts.failed);
  }
  if (counts.passed + counts.failed == 0)
    throw Error(Errc::invalid_argument,
                fmt::format("--only \"{}\" names no case; --list prints all", options.only));
  return counts.failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace shunt::programs

int main(int argc, char** argv) {
  shunt::programs::prepare_cuda();
  try {
    return shunt::programs::run(argc, argv);
  } catch (const std::exception& error) {
    return shunt::programs::report_error("test_all_to_all", error);
  }
}

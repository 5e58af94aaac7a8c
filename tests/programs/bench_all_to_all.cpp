// Dispatch and combine timed at the points of pplx-kernels' C++ benchmark: mpirun -np 4 build/bench_all_to_all
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/statistics.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

#include "programs/bench_point.h"
#include "programs/bench_step.h"
#include "programs/program.h"

namespace shunt::programs {
namespace {

using namespace std::chrono_literals;

/// What is timed, in this order; a step gives all of them.
constexpr const char* kPhases[] = {"dispatch",      "combine",      "dispatch send",
                                   "dispatch recv", "combine send", "combine recv"};
constexpr std::size_t kNumPhases = std::size(kPhases);

constexpr auto kPatience = 60s;
/// Between the halves of a split step, so that what a receive half waits for has arrived.
constexpr auto kGap = 100us;

/// One sample: dispatch and combine whole, then the same in halves. Every one begins when all ranks are there, so that none
/// takes over what another rank was late with.
void take_sample(BenchStep& step, Collectives& collectives, double* us) {
  const auto time = [&](std::initializer_list<Call> calls) {
    collectives.barrier(kPatience);
    *us++ = step.time_us(calls);
  };
  time({Call::dispatch_send, Call::dispatch_recv});
  time({Call::combine_send, Call::combine_recv});
  time({Call::dispatch_send});
  std::this_thread::sleep_for(kGap);
  time({Call::dispatch_recv});
  time({Call::combine_send});
  std::this_thread::sleep_for(kGap);
  time({Call::combine_recv});
}

struct PointResult {
  std::vector<std::vector<double>> phases{kNumPhases};  ///< Samples, each the slowest rank's
  std::int64_t runs = 0;
};

/// Collective. The samples of all ranks, which rank 0 alone needs.
PointResult measure(Transport& transport, Collectives& collectives, const Point& point,
                    const Options& options, bool on_gpu) {
  const std::unique_ptr<BenchStep> step =
      on_gpu ? make_gpu_step(transport, point, options) : make_cpu_step(transport, point, options);
  const auto samples = static_cast<std::size_t>(options.samples);
  const auto ranks = static_cast<std::size_t>(transport.world().size);
  std::vector<double> mine(samples * kNumPhases);
  std::vector<double> all(ranks * mine.size());
  const auto run = [&] {
    for (std::size_t at = 0; at < samples; ++at)
      take_sample(*step, collectives, mine.data() + at * kNumPhases);
  };
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                      std::chrono::duration<double>(options.max_seconds));
  // Rank 0's clock decides for all, also how long is warmed up: at most a fifth of the time.
  const auto warm_end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(options.max_seconds / 5));
  std::vector<std::uint8_t> goes_on(ranks);
  const auto agree = [&](bool mine_goes_on) {
    const std::uint8_t word = mine_goes_on ? 1 : 0;
    collectives.allgather(&word, 1, goes_on.data(), kPatience);
    return goes_on[0] != 0;
  };
  for (std::int64_t at = 0; at < options.warmup && agree(Clock::now() < warm_end); ++at) run();
  PointResult result;
  do {
    run();
    ++result.runs;
    collectives.allgather(mine.data(), static_cast<std::int64_t>(mine.size() * sizeof(double)), all.data(),
                          kPatience);
    for (std::size_t at = 0; at < mine.size(); ++at) {
      double slowest = 0;
      for (std::size_t rank = 0; rank < ranks; ++rank)
        slowest = std::max(slowest, all[rank * mine.size() + at]);
      result.phases[at % kNumPhases].push_back(slowest);
    }
  } while (agree(result.runs < options.runs && Clock::now() < end));
  return result;
}

double gb_per_s(double bytes, double us) {
  return us > 0 ? bytes / us / 1e3 : 0;
}

void print_point(const Point& point, const PointResult& result, const PointBytes& bytes, bool on_gpu) {
  fmt::print("{}{} ({} runs)\n", on_gpu ? "cuda " : "", point.name(), result.runs);
  for (std::size_t phase = 0; phase < kNumPhases; ++phase) {
    const SampleSummary s = summarize(result.phases[phase]);
    fmt::print("  {:14} {:9.1f} ± {:8.1f}  median {:9.1f}  p99 {:9.1f} µs", kPhases[phase], s.mean, s.stddev,
               s.median, s.p99);
    const double moved = phase == 0 ? bytes.dispatch : bytes.combine;
    if (phase < 2) fmt::print("  {:9.0f} bytes  {:7.3f} GB/s", moved, gb_per_s(moved, s.mean));
    fmt::print("\n");
  }
  std::fflush(stdout);
}

std::string tsv_row(const Point& point, const PointResult& result, const PointBytes& bytes) {
  const SampleSummary dispatch = summarize(result.phases[0]);
  const SampleSummary combine = summarize(result.phases[1]);
  const auto three = [](const SampleSummary& s, double moved) {
    return fmt::format("{:4.1f}μs ± {:4.1f}μs\t{:2.3f}GB/s\t{:.0f}", s.mean, s.stddev,
                       gb_per_s(moved, s.mean), moved);
  };
  // The dense exchanges of the original are methods of shunt bench alltoall.
  return fmt::format("{}\t{}\t{}\t{}\t{}\t{}\tNA\tNA\tNA\tNA\tNA\tNA\n", point.experts, point.top_k,
                     point.tokens, point.hidden, three(dispatch, bytes.dispatch),
                     three(combine, bytes.combine));
}

/// As rank 0 of the world: prints, and writes the table.
class Report {
 public:
  Report(const Options& options, std::int32_t ranks, bool on_gpu)
      : options_(options), ranks_(ranks), on_gpu_(on_gpu) {
    if (options.tsv.empty()) return;
    file_.open(options.tsv, std::ios::app);
    write(fmt::format(
        "EP={} DP={} device={}\nE\tE/tok\ttok\tdim\tDispatch_lat\tDispatch_bw\tDispatch_bytes\tCombine_lat\t"
        "Combine_bw\tCombine_bytes\tTorch_lat\tTorch_bw\tTorch_bytes\tNVSHMEM_lat\tNVSHMEM_bw\t"
        "NVSHMEM_bytes\n",
        ranks, ranks / options.dp_size, on_gpu ? "cuda" : "cpu"));
  }
  void add(const Point& point, const PointResult& result) {
    const PointBytes bytes = bytes_of(point, options_, ranks_);
    print_point(point, result, bytes, on_gpu_);
    if (!options_.tsv.empty()) write(tsv_row(point, result, bytes));
  }

 private:
  void write(const std::string& text) {
    if (!(file_ << text << std::flush))
      throw Error(Errc::io, fmt::format("--tsv: {} cannot be written", options_.tsv));
  }

  const Options& options_;
  std::int32_t ranks_;
  bool on_gpu_;
  std::ofstream file_;
};

int measure_points(Transport& transport, const std::vector<Point>& points, const Options& options,
                   bool on_gpu) {
  const std::int32_t ranks = transport.world().size;
  if (ranks % options.dp_size != 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("--dp-size {} with {} ranks; a divisor of their number is allowed",
                            options.dp_size, ranks));
  }
  const std::int64_t most = options.samples * static_cast<std::int64_t>(kNumPhases * sizeof(double));
  const auto collectives = transport.make_collectives(most, Clock::now() + kPatience);
  std::unique_ptr<Report> report;
  if (transport.world().rank == 0) report = std::make_unique<Report>(options, ranks, on_gpu);
  for (const Point& point : points) {
    const PointResult result = measure(transport, *collectives, point, options, on_gpu);
    if (report != nullptr) report->add(point, result);
  }
  return 0;
}

/// The points on one device. Result: the exit status.
int run_points(LaunchSession& session, const std::vector<Point>& points, const Options& options,
               bool on_gpu) {
  LaunchOptions launch = options.launch;
  if (on_gpu) launch.transport = "cuda_ipc";
  const std::vector<RankOutcome> outcomes = session.run(
      launch, [&](Transport& transport) { return measure_points(transport, points, options, on_gpu); });
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.exit_status != 0)
      fmt::print(stderr, "bench_all_to_all: rank {} ended with {}: {}\n", outcome.rank, outcome.exit_status,
                 outcome.message);
  }
  return combined_status(outcomes);
}

int run(int argc, char** argv) {
  Options options;
  if (!read_options(argc, argv, true, options)) return 0;
  std::vector<Point> points;
  for (const Point& point : all_points()) {
    if (point.name().find(options.only) != std::string::npos) points.push_back(point);
  }
  if (points.empty()) {
    throw Error(Errc::invalid_argument,
                fmt::format("--only \"{}\" names no point; --list prints all", options.only));
  }
  const Launch launch = find_launch(options);
  LaunchSession session(launch);
  if (options.list) {
    for (const Point& point : points) {
      if (session.leads()) fmt::print("{}\n", point.name());
    }
    return 0;
  }
  std::string no_gpu = gpu_reason(options);
  if (no_gpu.empty()) no_gpu = gpu_steps_missing();
  if (options.device == "cuda" && !no_gpu.empty()) throw Error(Errc::unavailable, "--device cuda: " + no_gpu);
  if (session.leads()) {
    if (!options.tsv.empty() && std::filesystem::exists(options.tsv))
      throw Error(Errc::invalid_argument,
                  fmt::format("--tsv: {} exists; nothing is overwritten", options.tsv));
    fmt::print(
        "bench_all_to_all: {}; the slowest rank of each sample; bytes are of the tokens that were brought, "
        "the mean over the ranks\n",
        describe_launch(session, options));
    std::fflush(stdout);
  }
  int status = options.device == "cuda" ? 0 : run_points(session, points, options, false);
  // Ranks of other processes may wait for one that failed.
  if (status == 0 && no_gpu.empty()) status = run_points(session, points, options, true);
  if (session.leads() && !no_gpu.empty()) fmt::print("cuda: not run: {}\n", no_gpu);
  return status;
}

}  // namespace
}  // namespace shunt::programs

int main(int argc, char** argv) {
  shunt::programs::prepare_cuda();
  try {
    return shunt::programs::run(argc, argv);
  } catch (const std::exception& error) {
    return shunt::programs::report_error("bench_all_to_all", error);
  }
}

// Dispatch and combine timed at the points of pplx-kernels' C++ benchmark: mpirun -np 4 build/bench_all_to_all
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/core/random.h>
#include <shunt/core/statistics.h>
#include <shunt/transport/collectives.h>

#include "programs/program.h"

namespace shunt::programs {
namespace {

using namespace std::chrono_literals;

struct Point {
  std::int64_t tokens = 1;  ///< M
  std::int32_t experts = 1;
  std::int32_t top_k = 1;
  std::int64_t hidden = 1;
  bool fp8 = false;  ///< fp8 tokens with a float per block, else bf16

  [[nodiscard]] std::string name() const {
    return fmt::format("E{}-K{}-H{}-M{}-{}", experts, top_k, hidden, tokens, fp8 ? "fp8" : "bf16");
  }
};

/// What is timed, in this order; a step gives all of them.
constexpr const char* kPhases[] = {"dispatch",      "combine",      "dispatch send",
                                   "dispatch recv", "combine send", "combine recv"};
constexpr std::size_t kNumPhases = std::size(kPhases);

constexpr auto kPatience = 60s;
/// Between the halves of a split step, so that what a receive half waits for has arrived.
constexpr auto kGap = 100us;
constexpr std::int64_t kBlock = 128;

std::vector<Point> all_points() {
  std::vector<Point> points;
  for (const bool fp8 : {true, false}) {
    points.push_back({.tokens = 1, .experts = 8, .top_k = 4, .hidden = 128, .fp8 = fp8});
    points.push_back({.tokens = 4, .experts = 8, .top_k = 6, .hidden = 2048, .fp8 = fp8});
    for (const std::int32_t experts : {8, 16, 64, 256}) {
      for (const std::int64_t tokens : {1, 4, 16, 64, 128})
        points.push_back({.tokens = tokens, .experts = experts, .top_k = 8, .hidden = 7168, .fp8 = fp8});
    }
  }
  return points;
}

AllToAllConfig config_of(const Point& point, const Options& options) {
  AllToAllConfig config;
  config.max_tokens = point.tokens;
  config.num_experts = point.experts;
  config.top_k = point.top_k;
  config.hidden = point.hidden;
  config.dp_size = static_cast<std::int32_t>(options.dp_size);
  config.scale_block = std::min(kBlock, point.hidden);
  if (point.fp8) {
    config.token_dtype = config.payload = DType::f8e4m3;
    config.scale = ScaleType::f32;
  }
  return config;
}

/// Tokens that a group brings: from 1 to M as in the original, of which the bytes are then counted.
std::int64_t tokens_of(const Point& point, const Options& options, std::int32_t group) {
  if (options.full_tokens) return point.tokens;
  Random random(1, static_cast<std::uint64_t>(group));
  return 1 + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(point.tokens)));
}

struct Bytes {
  double dispatch = 0;  ///< Of rows and scales that leave a rank in a step, the mean over the ranks
  double combine = 0;   ///< Of expert results that reach a rank likewise
};

Bytes bytes_of(const Point& point, const Options& options, std::int32_t ranks) {
  const AllToAllConfig config = config_of(point, options);
  const std::int64_t blocks = (config.hidden - 1) / config.scale_block + 1;
  const std::int64_t row = config.hidden * dtype_bytes(config.payload) + blocks * scale_bytes(config.scale);
  Bytes bytes;
  for (std::int32_t group = 0; group < ranks / config.dp_size; ++group) {
    const auto choices = static_cast<double>(tokens_of(point, options, group) * config.top_k);
    bytes.dispatch += choices * static_cast<double>(row) / ranks;
    bytes.combine += choices *
                     static_cast<double>(config.hidden * dtype_bytes(config.expert_dtype) * config.dp_size) /
                     ranks;
  }
  return bytes;
}

/// One rank's object and inputs at one point.
class Step {
 public:
  Step(Transport& transport, const Point& point, const Options& options)
      : config_(config_of(point, options)),
        object_(transport, config_),
        count_(tokens_of(point, options, transport.world().rank / config_.dp_size)) {
    Random random(2, static_cast<std::uint64_t>(transport.world().rank / config_.dp_size));
    const std::int64_t blocks = (config_.hidden - 1) / config_.scale_block + 1;
    tokens_.resize(static_cast<std::size_t>(count_ * config_.hidden * dtype_bytes(config_.token_dtype)));
    // 1.0 or less in both formats, never NaN.
    for (std::byte& one : tokens_) one = static_cast<std::byte>(random.below(0x38));
    scales_.assign(static_cast<std::size_t>(config_.scale == ScaleType::none ? 0 : count_ * blocks), 1.0F);
    for (std::int64_t token = 0; token < count_; ++token) pick_experts(random);
    weights_.assign(static_cast<std::size_t>(count_ * config_.top_k),
                    1.0F / static_cast<float>(config_.top_k));
    out_.resize(static_cast<std::size_t>(count_ * config_.hidden * dtype_bytes(config_.out_dtype)));
    const MutableRows results = object_.expert_output();
    std::fill_n(results.data, results.rows * results.row_stride_bytes, std::byte{0});
  }

  Sent<Half::dispatch> dispatch_send() {
    const TokenInput input{.tokens = Rows(tokens_.data(), count_, config_.hidden, config_.token_dtype),
                           .scales = scales_.empty() ? nullptr : scales_.data()};
    return object_.dispatch_send(input, View2<const std::int32_t>(ids_.data(), count_, config_.top_k));
  }
  void dispatch_recv(Sent<Half::dispatch>&& sent) {
    rows_ = object_.dispatch_recv(std::move(sent)).starts.back();
  }
  Sent<Half::combine> combine_send() {
    const MutableRows results = object_.expert_output();
    return object_.combine_send(
        Rows(results.data, rows_, config_.hidden, config_.expert_dtype, results.row_stride_bytes));
  }
  void combine_recv(Sent<Half::combine>&& sent) {
    object_.combine_recv(std::move(sent), View2<const float>(weights_.data(), count_, config_.top_k),
                         MutableRows(out_.data(), count_, config_.hidden, config_.out_dtype));
  }

 private:
  void pick_experts(Random& random) {
    const std::size_t first = ids_.size();
    while (ids_.size() < first + static_cast<std::size_t>(config_.top_k)) {
      const auto expert =
          static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(config_.num_experts)));
      const auto begin = ids_.begin() + static_cast<std::ptrdiff_t>(first);
      if (std::find(begin, ids_.end(), expert) == ids_.end()) ids_.push_back(expert);
    }
  }

  AllToAllConfig config_;
  AllToAll object_;
  std::int64_t count_;
  std::int64_t rows_ = 0;
  std::vector<std::byte> tokens_;
  std::vector<float> scales_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  std::vector<std::byte> out_;
};

double microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

/// One sample: dispatch and combine whole, then the same in halves. Every one begins when all ranks are there, so that none
/// takes over what another rank was late with.
void take_sample(Step& step, Collectives& collectives, double* us) {
  const auto now = [] { return Clock::now(); };
  collectives.barrier(kPatience);
  auto start = now();
  step.dispatch_recv(step.dispatch_send());
  us[0] = microseconds(now() - start);
  collectives.barrier(kPatience);
  start = now();
  step.combine_recv(step.combine_send());
  us[1] = microseconds(now() - start);

  collectives.barrier(kPatience);
  start = now();
  Sent<Half::dispatch> dispatched = step.dispatch_send();
  us[2] = microseconds(now() - start);
  std::this_thread::sleep_for(kGap);
  collectives.barrier(kPatience);
  start = now();
  step.dispatch_recv(std::move(dispatched));
  us[3] = microseconds(now() - start);
  collectives.barrier(kPatience);
  start = now();
  Sent<Half::combine> combined = step.combine_send();
  us[4] = microseconds(now() - start);
  std::this_thread::sleep_for(kGap);
  collectives.barrier(kPatience);
  start = now();
  step.combine_recv(std::move(combined));
  us[5] = microseconds(now() - start);
}

struct PointResult {
  std::vector<std::vector<double>> phases{kNumPhases};  ///< Samples, each the slowest rank's
  std::int64_t runs = 0;
};

/// Collective. The samples of all ranks, which rank 0 alone needs.
PointResult measure(Transport& transport, Collectives& collectives, const Point& point,
                    const Options& options) {
  Step step(transport, point, options);
  const auto samples = static_cast<std::size_t>(options.samples);
  const auto ranks = static_cast<std::size_t>(transport.world().size);
  std::vector<double> mine(samples * kNumPhases);
  std::vector<double> all(ranks * mine.size());
  const auto run = [&] {
    for (std::size_t at = 0; at < samples; ++at)
      take_sample(step, collectives, mine.data() + at * kNumPhases);
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

void print_point(const Point& point, const PointResult& result, const Bytes& bytes) {
  fmt::print("{} ({} runs)\n", point.name(), result.runs);
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

std::string tsv_row(const Point& point, const PointResult& result, const Bytes& bytes) {
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
  Report(const Options& options, std::int32_t ranks) : options_(options), ranks_(ranks) {
    if (options.tsv.empty()) return;
    if (std::filesystem::exists(options.tsv))
      throw Error(Errc::invalid_argument,
                  fmt::format("--tsv: {} exists; nothing is overwritten", options.tsv));
    file_.open(options.tsv);
    write(fmt::format(
        "EP={} DP={}\nE\tE/tok\ttok\tdim\tDispatch_lat\tDispatch_bw\tDispatch_bytes\tCombine_lat\t"
        "Combine_bw\tCombine_bytes\tTorch_lat\tTorch_bw\tTorch_bytes\tNVSHMEM_lat\tNVSHMEM_bw\t"
        "NVSHMEM_bytes\n",
        ranks, ranks / options.dp_size));
  }
  void add(const Point& point, const PointResult& result) {
    const Bytes bytes = bytes_of(point, options_, ranks_);
    print_point(point, result, bytes);
    if (!options_.tsv.empty()) write(tsv_row(point, result, bytes));
  }

 private:
  void write(const std::string& text) {
    if (!(file_ << text << std::flush))
      throw Error(Errc::io, fmt::format("--tsv: {} cannot be written", options_.tsv));
  }

  const Options& options_;
  std::int32_t ranks_;
  std::ofstream file_;
};

int measure_points(Transport& transport, const std::vector<Point>& points, const Options& options) {
  const std::int32_t ranks = transport.world().size;
  if (ranks % options.dp_size != 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("--dp-size {} with {} ranks; a divisor of their number is allowed",
                            options.dp_size, ranks));
  }
  const std::int64_t most = options.samples * static_cast<std::int64_t>(kNumPhases * sizeof(double));
  const auto collectives = transport.make_collectives(most, Clock::now() + kPatience);
  std::unique_ptr<Report> report;
  if (transport.world().rank == 0) report = std::make_unique<Report>(options, ranks);
  for (const Point& point : points) {
    const PointResult result = measure(transport, *collectives, point, options);
    if (report != nullptr) report->add(point, result);
  }
  return 0;
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
  if (options.device == "cuda")
    throw Error(Errc::unavailable,
                "--device cuda: shunt bench alltoall --device cuda times the steps of GPUs");
  if (session.leads()) {
    fmt::print(
        "bench_all_to_all: {}; the slowest rank of each sample; bytes are of the tokens that were brought, "
        "the "
        "mean over the ranks\n",
        describe_launch(session, options));
    std::fflush(stdout);
  }
  const std::vector<RankOutcome> outcomes = session.run(
      options.launch, [&](Transport& transport) { return measure_points(transport, points, options); });
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.exit_status != 0)
      fmt::print(stderr, "bench_all_to_all: rank {} ended with {}: {}\n", outcome.rank, outcome.exit_status,
                 outcome.message);
  }
  if (session.leads()) fmt::print("cuda: shunt bench alltoall --device cuda times the steps of GPUs\n");
  return combined_status(outcomes);
}

}  // namespace
}  // namespace shunt::programs

int main(int argc, char** argv) {
  try {
    return shunt::programs::run(argc, argv);
  } catch (const std::exception& error) {
    return shunt::programs::report_error("bench_all_to_all", error);
  }
}

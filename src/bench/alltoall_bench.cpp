#include <shunt/bench/alltoall_bench.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <optional>

#include <fmt/format.h>

#include <shunt/bench/report.h>
#include <shunt/cluster/model_shape.h>
#include <shunt/core/error.h>
#include <shunt/core/host.h>
#include <shunt/core/record.h>
#include <shunt/transport/launch.h>

#include "channel.h"
#include "harness.h"
#include "probe.h"

namespace shunt::bench {
namespace {

/// Bytes per second of the slowest exchange worth starting, to leave out hopeless methods before they
/// allocate.
constexpr double kHopelessBytesPerSecond = 3e9;

struct Paths {
  std::string tsv, jsonl;
};

Paths output_paths(const AllToAllBenchOptions& options) {
  Paths paths{options.tsv, options.jsonl};
  if (paths.tsv.empty()) {
    const std::time_t now = std::time(nullptr);
    std::tm local{};
    localtime_r(&now, &local);
    char stamp[32];
    std::strftime(stamp, sizeof stamp, "%Y%m%d_%H%M%S", &local);
    paths.tsv = fmt::format("data/{}_unified_moe_separated.tsv", stamp);
  }
  if (paths.jsonl.empty())
    paths.jsonl = std::filesystem::path(paths.tsv).replace_extension(".jsonl").string();
  for (const std::string& path : {paths.tsv, paths.jsonl}) {
    if (std::filesystem::exists(path))
      throw Error(
          Errc::io,
          fmt::format("{} exists and is not overwritten; name another file with --tsv and --jsonl", path));
    const std::filesystem::path folder = std::filesystem::path(path).parent_path();
    std::error_code error;
    if (!folder.empty()) std::filesystem::create_directories(folder, error);
    if (error)
      throw Error(Errc::io, fmt::format("folder {} cannot be made: {}", folder.string(), error.message()));
  }
  if (paths.tsv == paths.jsonl)
    throw Error(Errc::invalid_argument,
                fmt::format("--tsv and --jsonl both name {}; allowed: two files", paths.tsv));
  return paths;
}

PlacementThresholds find_thresholds(const AllToAllBenchOptions& options, const HostInfo& host) {
  const PlacementThresholds prior = vendor_thresholds(host.cpu_vendor);
  if (options.ranks < 2) return prior;
  return refine_thresholds(prior, survey_round_trips(40, std::chrono::microseconds(4000)));
}

[[noreturn]] void throw_rank_failure(const std::vector<RankOutcome>& outcomes, const Point& point) {
  const int status = combined_status(outcomes);
  const RankOutcome* cause = nullptr;
  for (const RankOutcome& outcome : outcomes) {
    if (outcome.exit_status == 0) continue;
    if (cause == nullptr || (cause->message.empty() && !outcome.message.empty())) cause = &outcome;
  }
  const std::string detail = cause == nullptr         ? "unknown"
                             : cause->message.empty() ? fmt::format("status {}", cause->exit_status)
                                                      : cause->message;
  throw RankFailure(status == 2 ? Errc::invalid_argument : Errc::peer_lost,
                    fmt::format("{}, {} tokens: rank {} ended: {}", point.preset, point.tokens,
                                cause == nullptr ? -1 : cause->rank, detail),
                    status);
}

struct PointRunner {
  const AllToAllBenchOptions& options;
  const BenchOutput& output;
  const ModelDump* dump;
  PlacementThresholds thresholds;
  std::vector<MethodSpec> specs;
  std::size_t num_points;

  PointResult run(const Point& point, std::size_t index, double seconds) const {
    const auto start = Clock::now();
    const double base = static_cast<double>(index) / static_cast<double>(num_points);
    const std::string what = fmt::format("{} {} tokens, {}", point.preset, point.tokens, point.routing_label);
    if (output.progress) output.progress(base, what);
    const std::int64_t available = available_memory_bytes();
    const std::int64_t token_bytes =
        point.ranks / point.dp_size * point.tokens * point.hidden * dtype_bytes(point.in_dtype);
    if (available >= 0 && token_bytes > available / 10 * 9)
      throw Error(Errc::out_of_memory, fmt::format("the tokens of all ranks take {}; {} are available; fewer "
                                                   "--tokens, a smaller --hidden or fewer "
                                                   "--ranks reduce it",
                                                   format_bytes(token_bytes), format_bytes(available)));
    const Workload workload(point, dump);
    MethodSettings settings;
    settings.layout = options.layout;
    settings.alignment = options.alignment;
    settings.max_recv_rows = options.max_recv_rows;
    settings.deadline = std::chrono::milliseconds(options.deadline_ms);
    const auto hopeless = static_cast<std::int64_t>(seconds / 2 / static_cast<double>(options.rounds) *
                                                    kHopelessBytesPerSecond);
    const MethodPlan plan = plan_methods(specs, workload, settings, available_memory_bytes(), hopeless);
    HarnessOptions harness;
    harness.warmup = options.warmup;
    harness.iterations = options.iterations;
    harness.block_ms = options.block_ms;
    harness.rounds = options.rounds;
    harness.max_seconds = seconds;
    harness.start = start;
    harness.inner_phases = options.inner_phases;
    harness.thresholds = thresholds;
    if (output.progress)
      harness.progress = [&](double share) {
        output.progress(base + share / static_cast<double>(num_points), what);
      };
    const Channel channel;
    const auto outcomes =
        run_ranks(LaunchOptions{.ranks = point.ranks,
                                .mode = options.mode,
                                .transport = options.transport,
                                .start_deadline = std::chrono::milliseconds(options.deadline_ms),
                                .pin = true},
                  [&](Transport& transport) {
                    const PointResult result = measure_point(transport, workload, plan, settings, harness);
                    if (transport.world().rank == 0) channel.write(encode_result(result));
                    return 0;
                  });
    if (combined_status(outcomes) != 0) throw_rank_failure(outcomes, point);
    return decode_result(channel.read(), point);
  }
};

Record make_context(const std::vector<std::string>& command, const AllToAllBenchOptions& options,
                    const PlacementThresholds& thresholds) {
  Record context = context_record(command);
  context.set("seed", static_cast<std::int64_t>(options.seed))
      .set("placement_near_below_ns", thresholds.near_ns)
      .set("placement_same_l3_below_ns", thresholds.same_l3_ns)
      .set("required_rounds", options.rounds)
      .set("block_ms", options.block_ms)
      .set("warmup_iterations", options.warmup)
      .set("max_seconds", options.max_seconds)
      .set("layout", options.layout == RowLayout::packed ? "packed" : "padded")
      .set("alignment", options.alignment)
      .set("max_recv_rows", options.max_recv_rows);
  return context;
}

}  // namespace

AllToAllBenchReport run_alltoall_bench(AllToAllBenchOptions options, const std::vector<std::string>& command,
                                       const BenchOutput& output) {
  std::optional<ModelDump> dump;
  if (!options.input.empty()) {
    std::int32_t experts = options.num_experts;
    if (experts == 0 && options.presets.size() == 1)
      experts = find_model_shape(options.presets[0], preset_directory()).num_experts;
    if (experts == 0)
      throw Error(Errc::invalid_argument,
                  "--input needs the number of experts; give --experts or one --preset");
    dump = read_model_dump(options.input, experts);
    dump->routing.num_experts = experts;
  }
  const ModelDump* tokens = dump ? &*dump : nullptr;
  const std::vector<Point> points = expand_points(
      options, tokens, [](const char* name) { return static_cast<const char*>(std::getenv(name)); });
  PointRunner runner{options, output, tokens, {}, select_methods(options), points.size()};
  AllToAllBenchReport report;
  if (options.write_files) {
    const Paths paths = output_paths(options);
    report.tsv_path = paths.tsv;
    report.jsonl_path = paths.jsonl;
  }
  runner.thresholds = find_thresholds(options, read_host_info());

  const auto start = Clock::now();
  for (std::size_t i = 0; i < points.size(); ++i) {
    // What earlier points left of the time is shared by the later ones.
    const double used = std::chrono::duration<double>(Clock::now() - start).count();
    const double seconds =
        std::max(0.2, (options.max_seconds - used) / static_cast<double>(points.size() - i));
    report.points.push_back(runner.run(points[i], i, seconds));
    for (const MethodResult& method : report.points.back().methods)
      report.failed = report.failed || method.status == "failed";
    if (output.text) output.text(format_point(report.points.back()));
  }
  if (output.progress) output.progress(1, "done");
  if (output.text) output.text(format_conclusion(report.points));
  if (options.write_files) {
    std::string lines = make_context(command, options, runner.thresholds).to_json() + "\n";
    for (const PointResult& point : report.points)
      for (const Record& record : result_records(point, options.transport)) lines += record.to_json() + "\n";
    write_new_file(report.tsv_path, format_tsv(report.points));
    write_new_file(report.jsonl_path, lines);
    if (output.text)
      output.text(fmt::format("\nwritten: {}\n         {}\n", report.tsv_path, report.jsonl_path));
  }
  return report;
}

}  // namespace shunt::bench

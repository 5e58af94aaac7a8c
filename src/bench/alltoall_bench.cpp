#include <shunt/bench/alltoall_bench.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
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
#include "rank_failure.h"
#include "result_files.h"

namespace shunt::bench {
namespace {

/// Bytes per second of the slowest exchange worth starting, to leave out hopeless methods before they
/// allocate.
constexpr double kHopelessBytesPerSecond = 3e9;

PlacementThresholds find_thresholds(const AllToAllBenchOptions& options, const HostInfo& host) {
  const PlacementThresholds prior = vendor_thresholds(host.cpu_vendor);
  if (options.ranks < 2) return prior;
  return refine_thresholds(prior, survey_round_trips(40, std::chrono::microseconds(4000)));
}

[[noreturn]] void throw_out_of_memory() {
  throw Error(
      Errc::out_of_memory,
      "memory ran out beside the buffers that were checked before; fewer --tokens, --ranks or --methods, or "
      "a smaller --input need less");
}

/// What a Workload of this point holds. A dump of --input is in memory already when this is asked, so the
/// memory available is less by it.
std::int64_t workload_bytes(const Point& point) {
  const std::int64_t tokens = point.ranks / point.dp_size * point.tokens;
  const std::int64_t scales = is_fp8(point.in_dtype) ? (point.hidden + kScaleBlock - 1) / kScaleBlock * 4 : 0;
  const std::int64_t choice = std::int64_t{sizeof(std::int32_t)} + std::int64_t{sizeof(float)};
  return tokens * (point.hidden * dtype_bytes(point.in_dtype) + scales + point.top_k * choice);
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
    const std::int64_t tables = workload_bytes(point);
    if (available >= 0 && tables > available / 10 * 9)
      throw Error(
          Errc::out_of_memory,
          fmt::format("the tokens and expert choices of all ranks take {}; {} are available; fewer --tokens, "
                      "a smaller --hidden, fewer --topk or fewer --ranks reduce it",
                      format_bytes(tables), format_bytes(available)));
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
                    try {
                      const PointResult result = measure_point(transport, workload, plan, settings, harness);
                      if (transport.world().rank == 0) channel.write(encode_result(result));
                    } catch (const std::bad_alloc&) {
                      throw_out_of_memory();
                    }
                    return 0;
                  });
    if (combined_status(outcomes) != 0)
      throw_rank_failure(outcomes, fmt::format("{}, {} tokens", point.preset, point.tokens));
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

/// Errors: Errc::unavailable with every reason where none of the methods asked for can run here.
void check_some_available(const std::vector<MethodSpec>& specs) {
  std::string reasons;
  for (const MethodSpec& spec : specs) {
    if (spec.unavailable.empty()) return;
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", spec.name, spec.unavailable);
  }
  throw Error(Errc::unavailable, fmt::format("no method asked for can run here: {}", reasons));
}

std::vector<std::string> method_names(const std::vector<MethodSpec>& specs) {
  std::vector<std::string> names;
  for (const MethodSpec& spec : specs)
    if (std::find(names.begin(), names.end(), spec.name) == names.end()) names.push_back(spec.name);
  return names;
}

}  // namespace

AllToAllBenchReport run_alltoall_bench(AllToAllBenchOptions options, const std::vector<std::string>& command,
                                       const BenchOutput& output) try {
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
  check_some_available(runner.specs);
  AllToAllBenchReport report;
  std::unique_ptr<ResultFiles> files;
  if (options.write_files) {
    files = std::make_unique<ResultFiles>(options.tsv, options.jsonl);
    report.tsv_path = files->tsv_path();
    report.jsonl_path = files->jsonl_path();
  }
  runner.thresholds = find_thresholds(options, read_host_info());
  const std::vector<std::string> names = method_names(runner.specs);
  if (files)
    files->begin(tsv_header(names), make_context(command, options, runner.thresholds).to_json() + "\n");

  const auto start = Clock::now();
  for (std::size_t i = 0; i < points.size(); ++i) {
    // What earlier points left of the time is shared by the later ones.
    const double used = std::chrono::duration<double>(Clock::now() - start).count();
    const double seconds =
        std::max(0.2, (options.max_seconds - used) / static_cast<double>(points.size() - i));
    try {
      report.points.push_back(runner.run(points[i], i, seconds));
    } catch (...) {
      if (files && i > 0 && output.text)
        output.text(fmt::format("\nended early; written so far, {} of {} points: {}\n         {}\n", i,
                                points.size(), report.tsv_path, report.jsonl_path));
      throw;
    }
    const PointResult& point = report.points.back();
    for (const MethodResult& method : point.methods)
      report.failed = report.failed || method.status == "failed";
    if (files) {
      std::string lines;
      for (const Record& record : result_records(point, options.transport)) lines += record.to_json() + "\n";
      files->add_point(tsv_rows(point, names), lines);
    }
    if (output.text) output.text(format_point(point));
  }
  if (output.progress) output.progress(1, "done");
  if (output.text) output.text(format_conclusion(report.points));
  if (files && output.text)
    output.text(fmt::format("\nwritten: {}\n         {}\n", report.tsv_path, report.jsonl_path));
  return report;
} catch (const std::bad_alloc&) {
  throw_out_of_memory();
}

}  // namespace shunt::bench

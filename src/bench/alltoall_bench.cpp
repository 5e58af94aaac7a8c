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

#include "archive.h"
#include "channel.h"
#include "gpu/choose.h"
#include "harness.h"
#include "job.h"
#include "probe.h"
#include "rank_failure.h"
#include "result_files.h"

namespace shunt::bench {
namespace {

constexpr int kSurveyCount = 40;
constexpr std::chrono::microseconds kSurveyPause{4000};

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

LaunchOptions launch_options(const AllToAllBenchOptions& options) {
  return {.ranks = options.ranks,
          .nodes = options.nodes,
          .mode = options.mode,
          .transport = options.transport,
          .provider = options.provider,
          .start_deadline = std::chrono::milliseconds(options.deadline_ms),
          .stall_deadline = std::chrono::milliseconds(options.deadline_ms),
          .pin = true};
}

/// Runs `act`. What it refuses is thrown where this process is alone, else kept: the other processes wait for this
/// one to say it.
template <class Act>
void refuse_together(const Job& job, Refusal& refusal, const Act& act) {
  try {
    try {
      act();
    } catch (const std::bad_alloc&) {
      throw_out_of_memory();
    }
  } catch (const Error& error) {
    if (job.local()) throw;
    refusal = {error.code(), error.what()};
  }
}

struct PointRunner {
  const AllToAllBenchOptions& options;
  const BenchOutput& output;
  Job& job;
  const ModelDump* dump = nullptr;
  PlacementThresholds thresholds;
  std::vector<MethodSpec> specs;
  std::size_t num_points = 1;

  PointResult run(const Point& point, std::size_t index, double seconds) const {
    const auto start = Clock::now();
    const double base = static_cast<double>(index) / static_cast<double>(num_points);
    const std::string what = fmt::format("{} {} tokens, {}", point.preset, point.tokens, point.routing_label);
    if (output.progress) output.progress(base, what);
    HarnessOptions harness;
    std::optional<Workload> workload;
    refuse_together(job, harness.refusal, [&] {
      check_tables(point);
      workload.emplace(point, dump);
    });
    MethodSettings settings;
    settings.layout = options.layout;
    settings.alignment = options.alignment;
    settings.max_recv_rows = options.max_recv_rows;
    settings.deadline = std::chrono::milliseconds(options.deadline_ms);
    harness.warmup = options.warmup;
    harness.iterations = options.iterations;
    harness.block_ms = options.block_ms;
    harness.rounds = options.rounds;
    harness.max_seconds = seconds;
    harness.start = start;
    harness.inner_phases = options.inner_phases;
    harness.on_device = options.own_clocks;
    harness.thresholds = thresholds;
    if (output.progress)
      harness.progress = [&](double share) {
        output.progress(base + share / static_cast<double>(num_points), what);
      };
    const Channel channel;
    const auto outcomes = job.run(launch_options(options), [&](Transport& transport) {
      try {
        const std::unique_ptr<Transport> wrapped = options.wrap ? options.wrap(transport) : nullptr;
        const PointResult result = measure_point(wrapped ? *wrapped : transport,
                                                 workload ? &*workload : nullptr, specs, settings, harness);
        if (job.reports(transport.world())) channel.write(encode_result(result));
      } catch (const std::bad_alloc&) {
        throw_out_of_memory();
      }
      return 0;
    });
    if (combined_status(outcomes) != 0)
      throw_rank_failure(outcomes, fmt::format("{}, {} tokens", point.preset, point.tokens));
    return decode_result(channel.read(), point);
  }

 private:
  void check_tables(const Point& point) const {
    const std::int64_t available = available_memory_bytes();
    const std::int64_t tables = workload_bytes(point) * job.processes_here();
    if (available < 0 || tables <= available / 10 * 9) return;
    throw Error(
        Errc::out_of_memory,
        fmt::format("the tokens and expert choices of all ranks take {}{}; {} are available; fewer --tokens, "
                    "a smaller --hidden, fewer --topk or fewer --ranks reduce it",
                    format_bytes(tables),
                    job.processes_here() > 1
                        ? fmt::format(" in {} processes of this machine", job.processes_here())
                        : "",
                    format_bytes(available)));
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
      .set("max_recv_rows", options.max_recv_rows)
      .set("device", options.device);
  if (options.own_clocks)
    context.set("cold", options.cold)
        .set("graph", options.graph)
        .set("gate", options.gate)
        .set("max_blocks", std::int64_t{options.max_blocks})
        .set("rank_mode", options.mode == RankMode::threads ? "threads" : "processes");
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

/// What a process works out before its ranks meet those of other processes.
struct Prepared {
  std::optional<ModelDump> dump;
  std::vector<Point> points;
  std::vector<MethodSpec> specs;
  std::unique_ptr<ResultFiles> files;  ///< Of the process that leads
  [[nodiscard]] const ModelDump* tokens() const { return dump ? &*dump : nullptr; }
};

void prepare(Prepared& ready, AllToAllBenchOptions& options, const Job& job) {
  job.check_nodes(options.nodes);
  if (!options.input.empty()) {
    std::int32_t experts = options.num_experts;
    if (experts == 0 && options.presets.size() == 1)
      experts = find_model_shape(options.presets[0], preset_directory()).num_experts;
    if (experts == 0)
      throw Error(Errc::invalid_argument,
                  "--input needs the number of experts; give --experts or one --preset");
    ready.dump = read_model_dump(options.input, experts);
    ready.dump->routing.num_experts = experts;
  }
  ready.points = expand_points(options, ready.tokens(), job.ranks());
  ready.specs = select_methods(options);
  check_some_available(ready.specs);
  if (options.write_files && job.leads())
    ready.files = std::make_unique<ResultFiles>(options.tsv, options.jsonl);
}

/// What the first meeting of all ranks of a job found.
struct FirstMeeting {
  Refusal refusal;
  std::vector<double> round_trips_ns;  ///< Of rank 0, for the process that leads
};

/// The ranks compare what they were asked to do, then ranks 0 and 1 look at the caches between them.
FirstMeeting meet_first(Job& job, const AllToAllBenchOptions& options, const Prepared& ready,
                        const Refusal& refusal) {
  const std::vector<OptionHash> hashes = hash_options(options, ready.points, ready.specs, ready.tokens());
  const std::chrono::milliseconds deadline(options.deadline_ms);
  const Channel channel;
  const auto visit = [](auto& archive, FirstMeeting& found) {
    field(archive, found.refusal.code);
    field(archive, found.refusal.text);
    list(archive, found.round_trips_ns, [&archive](double& ns) { field(archive, ns); });
  };
  const auto outcomes = job.run(launch_options(options), [&](Transport& transport) {
    FirstMeeting found;
    found.refusal = compare_options(transport, hashes, refusal, deadline);
    if (found.refusal.text.empty())
      found.round_trips_ns = RoundTripProbe(transport, deadline).survey(kSurveyCount, kSurveyPause);
    Writer writer;
    visit(writer, found);
    if (job.reports(transport.world())) channel.write(writer.bytes);
    return 0;
  });
  if (combined_status(outcomes) != 0) throw_rank_failure(outcomes, "start of the job");
  FirstMeeting found;
  const std::string bytes = channel.read();
  Reader reader{bytes};
  visit(reader, found);
  return found;
}

}  // namespace

AllToAllBenchReport run_alltoall_bench(AllToAllBenchOptions options, const std::vector<std::string>& command,
                                       const BenchOutput& output) try {
  Job job(options.ranks, [](const char* name) { return static_cast<const char*>(std::getenv(name)); });
  const BenchOutput told = job.leads() ? output : BenchOutput{};
  AllToAllBenchReport report;
  report.leads = job.leads();
  report.note = choose_device(options);
  report.device = options.device;
  if (!report.note.empty() && told.text) told.text("# " + report.note + "\n");
  Prepared ready;
  Refusal refusal;
  refuse_together(job, refusal, [&] { prepare(ready, options, job); });
  PlacementThresholds thresholds = vendor_thresholds(read_host_info().cpu_vendor);
  if (!job.local()) {
    const FirstMeeting found = meet_first(job, options, ready, refusal);
    if (!found.refusal.text.empty()) {
      if (report.leads) throw Error(found.refusal.code, found.refusal.text);
      report.status = exit_status(found.refusal.code);
      return report;
    }
    thresholds = refine_thresholds(thresholds, found.round_trips_ns);
  } else if (options.ranks > 1) {
    thresholds = refine_thresholds(thresholds, survey_round_trips(kSurveyCount, kSurveyPause));
  }
  const std::vector<Point>& points = ready.points;
  ResultFiles* const files = ready.files.get();
  if (files != nullptr) {
    report.tsv_path = files->tsv_path();
    report.jsonl_path = files->jsonl_path();
  }
  const PointRunner runner{options, told, job, ready.tokens(), thresholds, ready.specs, points.size()};
  const std::vector<std::string> names = method_names(runner.specs);
  if (files != nullptr)
    files->begin(tsv_header(names), make_context(command, options, thresholds).to_json() + "\n");

  NewFile pplx{.path = options.pplx_tsv};
  if (!pplx.path.empty() && job.leads()) {
    pplx.make();
    pplx.append(pplx_tsv_header());
  }
  const auto start = Clock::now();
  for (std::size_t i = 0; i < points.size(); ++i) {
    // What earlier points left of the time is shared by the later ones.
    const double used = std::chrono::duration<double>(Clock::now() - start).count();
    const double seconds =
        std::max(0.2, (options.max_seconds - used) / static_cast<double>(points.size() - i));
    try {
      report.points.push_back(runner.run(points[i], i, seconds));
    } catch (...) {
      if (files != nullptr && i > 0 && told.text)
        told.text(fmt::format("\nended early; written so far, {} of {} points: {}\n         {}\n", i,
                              points.size(), report.tsv_path, report.jsonl_path));
      throw;
    }
    const PointResult& point = report.points.back();
    for (const MethodResult& method : point.methods)
      report.failed = report.failed || method.status == "failed";
    if (files != nullptr) {
      std::string lines;
      for (const Record& record : result_records(point)) lines += record.to_json() + "\n";
      files->add_point(tsv_rows(point, names), lines);
    }
    if (pplx.descriptor >= 0) pplx.append(pplx_tsv_row(point));
    if (options.on_point && job.leads()) options.on_point(point);
    if (told.text) told.text(format_point(point));
  }
  if (report.failed) report.status = exit_status(Errc::check_failed);
  if (told.progress) told.progress(1, "done");
  if (told.text) told.text(format_conclusion(report.points));
  if (files != nullptr && told.text)
    told.text(fmt::format("\nwritten: {}\n         {}\n", report.tsv_path, report.jsonl_path));
  return report;
} catch (const std::bad_alloc&) {
  throw_out_of_memory();
}

}  // namespace shunt::bench

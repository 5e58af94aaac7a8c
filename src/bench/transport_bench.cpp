#include <shunt/bench/transport_bench.h>

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <tuple>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

#include "channel.h"
#include "job.h"
#include "rank_failure.h"
#include "result_files.h"
#include "transport_bench_options.h"
#include "transport_bench_rank.h"

namespace shunt::bench {
namespace {

/// With several transports each gets this many turns, one after the other.
constexpr std::int64_t kTurns = 5;

/// The files asked for: made before anything is measured, removed where nothing comes to stand in them.
class Files {
 public:
  Files(const TransportBenchOptions& options, bool leads) {
    if (!leads) return;
    if (!options.tsv.empty() && options.tsv == options.jsonl)
      throw Error(Errc::invalid_argument,
                  fmt::format("--tsv and --jsonl both name {}; allowed: two files", options.tsv));
    tsv_.path = options.tsv;
    jsonl_.path = options.jsonl;
    try {
      for (NewFile* file : {&tsv_, &jsonl_})
        if (!file->path.empty()) file->make();
    } catch (...) {
      tsv_.remove();
      throw;
    }
  }
  ~Files() {
    for (NewFile* file : {&tsv_, &jsonl_}) {
      if (file->descriptor < 0) continue;
      if (written_)
        close(file->descriptor);
      else
        file->remove();
    }
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;

  void write(const std::string& table, const std::string& records) {
    written_ = true;
    if (tsv_.descriptor >= 0) tsv_.append(table);
    if (jsonl_.descriptor >= 0) jsonl_.append(records);
  }

 private:
  NewFile tsv_, jsonl_;
  bool written_ = false;
};

/// Samples of one series in one class.
struct ClassLog {
  std::int64_t rounds = 0;
  std::vector<double> samples_us;
};

/// All turns of one operation at one size by one method.
struct Series {
  CaseResult shape;  ///< Without blocks; counts of all turns together
  std::string transport;
  std::map<std::string, ClassLog> classes;
};

class Collector {
 public:
  explicit Collector(TransportBenchReport& report) : report_(report) {}

  void add(const TurnResult& turn) {
    if (std::none_of(report_.worlds.begin(), report_.worlds.end(),
                     [&](const TransportWorld& world) { return world.transport == turn.world.transport; }))
      report_.worlds.push_back(turn.world);
    for (const std::string& note : turn.notes)
      if (std::find(report_.notes.begin(), report_.notes.end(), note) == report_.notes.end())
        report_.notes.push_back(note);
    for (const CaseResult& one : turn.cases) add_case(turn.world, one, turn.thresholds);
  }

  /// Rows by operation in the order of transport_operations(), then size, then method in the order of turns.
  void finish() {
    report_.rows.clear();
    for (const std::string& op : transport_operations()) {
      std::vector<const Series*> of_op;
      for (const Series& series : all_)
        if (series.shape.op == op) of_op.push_back(&series);
      std::stable_sort(of_op.begin(), of_op.end(),
                       [](const Series* a, const Series* b) { return a->shape.bytes < b->shape.bytes; });
      for (const Series* series : of_op) add_rows(*series);
    }
  }

 private:
  void add_case(const TransportWorld& world, const CaseResult& one, const PlacementThresholds& thresholds) {
    Series& series = find(world, one);
    series.shape.checked += one.checked;
    series.shape.wrong += one.wrong;
    if (series.shape.reason.empty()) series.shape.reason = one.reason;
    for (const Block& block : one.blocks) {
      const std::string label = turn_label(block, world.ranks, thresholds);
      ++(label.empty() ? report_.blocks_dropped : report_.blocks_kept);
      if (label.empty()) continue;
      ClassLog& log = series.classes[label];
      ++log.rounds;
      log.samples_us.insert(log.samples_us.end(), block.samples_us.begin(), block.samples_us.end());
    }
    report_.failed = report_.failed || one.wrong > 0;
  }

  Series& find(const TransportWorld& world, const CaseResult& one) {
    const auto key = [](const std::string& transport, const CaseResult& shape) {
      return std::tie(transport, shape.op, shape.method, shape.bytes);
    };
    for (Series& series : all_)
      if (key(series.transport, series.shape) == key(world.transport, one)) return series;
    Series series{.shape = one, .transport = world.transport, .classes = {}};
    series.shape.blocks.clear();
    series.shape.checked = series.shape.wrong = 0;
    all_.push_back(std::move(series));
    return all_.back();
  }

  void add_rows(const Series& series) {
    const CaseResult& shape = series.shape;
    const auto row_in = [&](const std::string& placement, const ClassLog& log) {
      TransportRow row;
      row.op = shape.op;
      row.method = shape.method;
      row.transport = series.transport;
      row.bytes = shape.bytes;
      row.messages = shape.messages;
      row.placement = placement;
      row.rounds = log.rounds;
      row.us = summarize(log.samples_us);
      if (row.us.median > 0) row.gb_per_s = static_cast<double>(shape.payload_bytes) / row.us.median / 1e3;
      if (shape.bus_share >= 0) row.busbw_gb_per_s = row.gb_per_s * shape.bus_share;
      row.wrong = shape.wrong;
      row.checked = shape.checked;
      row.reason = shape.reason;
      report_.rows.push_back(std::move(row));
    };
    for (const auto& in_class : series.classes) row_in(in_class.first, in_class.second);
    // What was checked counts, even where every block was dropped.
    if (series.classes.empty()) row_in("dropped", {});
  }

  TransportBenchReport& report_;
  std::vector<Series> all_;
};

struct Runner {
  const TransportBenchOptions& options;
  Job& job;
  std::string master_addr;
  std::vector<std::string> ops;
  Refusal refusal;
  PlacementThresholds thresholds;
  bool surveyed = false;

  /// One world of ranks.
  [[nodiscard]] TurnResult run(const std::string& transport, std::int64_t turn, std::int64_t rounds,
                               double seconds) {
    const TurnRequest request{.options = options,
                              .ops = ops,
                              .turn = turn,
                              .rounds = rounds,
                              .seconds = seconds,
                              .thresholds = thresholds,
                              .survey = !surveyed,
                              .refusal = refusal,
                              .master_addr = master_addr};
    LaunchOptions launch{.ranks = options.ranks, .nodes = options.nodes, .mode = options.mode};
    launch.transport = transport;
    launch.provider = options.provider;
    launch.start_deadline = launch.stall_deadline = std::chrono::milliseconds(options.deadline_ms);
    launch.pin = true;
    const Channel channel;
    const auto outcomes = job.run(launch, [&](Transport& over) {
      try {
        const TurnResult result = measure_turn(over, request);
        if (job.reports(over.world())) channel.write(encode_turn(result));
      } catch (const std::bad_alloc&) {
        throw Error(
            Errc::out_of_memory,
            fmt::format("rank {}: memory ran out; a smaller --max-bytes or --window, or fewer --ranks "
                        "need less",
                        over.world().rank));
      }
      return 0;
    });
    if (combined_status(outcomes) != 0)
      throw_rank_failure(outcomes, fmt::format("bench transport over {}", transport));
    TurnResult result = decode_turn(channel.read());
    surveyed = surveyed || result.surveyed;
    thresholds = result.thresholds;
    return result;
  }
};

/// Rows bear the name of the transport that was measured. Where that is not the one asked for, `notes` says so; where
/// two that were asked for are the same one, their samples would mix. `resolved`: measured -> asked for, of the turns
/// before.
/// Errors: Errc::invalid_argument, on every process alike.
void note_resolved(const std::string& asked, const TransportWorld& world,
                   std::map<std::string, std::string>& resolved, std::vector<std::string>& notes) {
  const auto [at, added] = resolved.try_emplace(world.transport, asked);
  if (at->second != asked)
    throw Error(
        Errc::invalid_argument,
        fmt::format("--transport: \"{}\" and \"{}\" are both {} where {} ranks are on {} node{}; "
                    "allowed: names of different transports{}",
                    at->second, asked, world.transport, world.ranks, world.nodes, world.nodes == 1 ? "" : "s",
                    world.nodes == 1 ? " (--nodes 2 pretends that there are two nodes)" : ""));
  if (added && asked != "auto" && asked != world.transport)
    notes.push_back(
        fmt::format("{}: all ranks are on one node, so {} carries what they exchange, and that is measured",
                    asked, world.transport));
}

std::string record_lines(const TransportBenchReport& report, const TransportBenchOptions& options,
                         const PlacementThresholds& thresholds, const std::vector<std::string>& command) {
  Record context = context_record(command);
  context.set("seed", static_cast<std::int64_t>(options.seed))
      .set("placement_near_below_ns", thresholds.near_ns)
      .set("placement_same_l3_below_ns", thresholds.same_l3_ns)
      .set("required_rounds", options.rounds)
      .set("block_ms", options.block_ms)
      .set("warmup_iterations", options.warmup)
      .set("max_seconds", options.max_seconds)
      .set("window", options.window)
      .set("provider", options.provider);
  std::string lines = context.to_json() + "\n";
  for (const Record& record : transport_records(report, options)) lines += record.to_json() + "\n";
  return lines;
}

}  // namespace

TransportBenchReport run_transport_bench(TransportBenchOptions options,
                                         const std::vector<std::string>& command, const BenchOutput& output) {
  const auto get = [](const char* name) { return static_cast<const char*>(std::getenv(name)); };
  const bool explicit_ranks = options.ranks > 0;
  Job job(options.ranks, get);
  if (job.ranks() > 0) options.ranks = job.ranks();
  if (options.ranks == 0) options.ranks = 2;
  TransportBenchReport report;
  report.leads = job.leads();
  const BenchOutput told = report.leads ? output : BenchOutput{};
  const char* const master = explicit_ranks ? nullptr : get("MASTER_ADDR");
  Refusal refusal;
  std::vector<std::string> ops;
  std::unique_ptr<Files> files;
  try {
    job.check_nodes(options.nodes);
    ops = settle_transport_options(options, report.notes);
    files = std::make_unique<Files>(options, report.leads);
  } catch (const Error& error) {
    // The others wait for this process already: they must meet it to learn why.
    if (job.local()) throw;
    refusal = {error.code(), error.what()};
    // Whatever was refused: with these it can be said.
    options.deadline_ms = std::max(options.deadline_ms, std::int64_t{1000});
    for (const std::string& name : options.transports)
      if (name != "shm" && name != "mpi" && name != "ofi") {
        options.transports = {"auto"};
        break;
      }
  }
  if (options.transports.empty()) options.transports = {"auto"};
  Runner runner{.options = options,
                .job = job,
                .master_addr = master == nullptr ? "" : master,
                .ops = ops,
                .refusal = refusal,
                .thresholds = vendor_thresholds(read_host_info().cpu_vendor)};

  Collector collector(report);
  std::map<std::string, std::string> resolved;
  const auto start = Clock::now();
  const auto several = static_cast<std::int64_t>(options.transports.size());
  const std::int64_t turns = several == 1 ? 1 : std::min(kTurns, options.rounds);
  const auto finish = [&] {
    collector.finish();
    if (told.text) told.text(format_transport_table(report, options, command, false));
    if (files)
      files->write(format_transport_table(report, options, command, true),
                   record_lines(report, options, runner.thresholds, command));
  };
  try {
    for (std::int64_t turn = 0; turn < turns; ++turn)
      for (std::int64_t i = 0; i < several; ++i) {
        // Which transport begins changes from turn to turn.
        const std::string& name = options.transports[static_cast<std::size_t>((turn + i) % several)];
        const std::int64_t done = turn * several + i;
        if (told.progress)
          told.progress(static_cast<double>(done) / static_cast<double>(turns * several), name);
        const double used = std::chrono::duration<double>(Clock::now() - start).count();
        const double left = (options.max_seconds - used) / static_cast<double>(turns * several - done);
        const TurnResult result =
            runner.run(name, turn, (options.rounds + turns - 1) / turns, std::max(0.05, left));
        note_resolved(name, result.world, resolved, report.notes);
        collector.add(result);
      }
  } catch (const RankFailure&) {
    if (!report.worlds.empty()) {
      report.notes.emplace_back("ended early: a rank failed; these are the turns before");
      finish();
    }
    throw;
  }
  if (told.progress) told.progress(1, "done");
  finish();
  return report;
}

}  // namespace shunt::bench

#include <algorithm>

#include <shunt/bench/report.h>

#include "record_fields.h"

namespace shunt::bench {
namespace {

double gb_per_s(std::int64_t bytes, double us) {
  return us > 0 ? static_cast<double>(bytes) / us / 1e3 : 0;
}

std::int64_t phase_bytes(const PointResult& result, const MethodResult& method, std::string_view phase) {
  if (method.name == "empty") return 0;
  if (phase == "dispatch" || phase == "pack" || phase == "exchange" || phase == "unpack")
    return result.dispatch_bytes;
  if (phase == "touch") return result.touch_bytes;
  if (phase == "combine" || phase == "combine_pack" || phase == "combine_exchange" || phase == "reduce")
    return result.combine_bytes;
  return phase == "total" ? result.dispatch_bytes + result.combine_bytes : 0;
}

/// Whether one block at least was kept; inner phases may come from blocks of their own.
bool was_seen(const MethodResult& method) {
  return std::any_of(method.phases.begin(), method.phases.end(), [](const PhaseResult& phase) {
    return phase.phase == "dispatch" || phase.phase == "combine";
  });
}

Record base_record(const PointResult& result, const MethodResult& method, const std::string& phase) {
  const bool unseen = method.status == "ok" && !was_seen(method);
  Record record("result");
  record.set("bench", "alltoall")
      .set("method", method.name)
      .set("variant", method.variant)
      .set("phase", phase)
      .set("status", unseen ? "skipped" : method.status)
      .set("reason", unseen ? "no block kept" : method.reason)
      .set("correct", method.correct);
  set_point(record, result);
  return record;
}

RecordValue known(std::int64_t bytes) {
  return bytes < 0 ? RecordValue{} : RecordValue(bytes);
}
RecordValue known(double bytes) {
  return bytes < 0 ? RecordValue{} : RecordValue(bytes);
}

/// What of a phase crossed between nodes, for methods that count it.
void set_crossing(Record& record, const Crossing& crossing, std::string_view phase) {
  if (crossing.path == CrossingPath::none) return;
  if (phase == "dispatch")
    record.set("crossed_bytes", known(crossing.row_bytes))
        .set("crossed_bytes_counted", known(crossing.counted_row_bytes))
        .set("crossed_bytes_uniform", known(crossing.uniform_row_bytes))
        .set("crossed_bytes_sigma", known(crossing.uniform_row_sigma));
  else if (phase == "combine")
    record.set("crossed_bytes", known(crossing.result_bytes))
        .set("crossed_bytes_counted", known(crossing.counted_result_bytes));
  else if (phase == "total")
    record.set("crossed_message_bytes", known(crossing.message_bytes));
}

}  // namespace

void set_point(Record& record, const PointResult& result) {
  const Point& point = result.point;
  record.set("transport", result.transport)
      .set("provider", result.provider)
      .set("clock", result.clock)
      .set("ranks", std::int64_t{point.ranks})
      .set("nodes", result.nodes)
      .set("dp_size", std::int64_t{point.dp_size})
      .set("preset", point.preset)
      .set("experts", std::int64_t{point.num_experts})
      .set("topk", std::int64_t{point.top_k})
      .set("hidden", point.hidden)
      .set("tokens_per_rank", point.tokens)
      .set("in_dtype", dtype_name(point.in_dtype))
      .set("out_dtype", dtype_name(point.out_dtype))
      .set("routing", point.routing_label)
      .set("seed", static_cast<std::int64_t>(point.seed));
}

void set_times(Record& record, const PhaseResult& phase) {
  record.set("rounds", phase.rounds)
      .set("median_us", phase.us.median)
      .set("median_low_us", phase.us.median_low)
      .set("median_high_us", phase.us.median_high)
      .set("p90_us", phase.us.p90)
      .set("p99_us", phase.us.p99)
      .set("min_us", phase.us.min)
      .set("max_us", phase.us.max)
      .set("mean_us", phase.us.mean)
      .set("std_us", phase.us.stddev);
}

std::vector<Record> result_records(const PointResult& result) {
  std::vector<Record> records;
  for (const MethodResult& method : result.methods) {
    if (method.status != "ok" || !was_seen(method)) {
      Record record = base_record(result, method, "total");
      record.set("placement", RecordValue{}).set("rounds", RecordValue(std::int64_t{0}));
      for (const char* key : {"median_us", "p90_us", "p99_us", "min_us", "max_us"})
        record.set(key, RecordValue{});
      record.set("samples", RecordValue(std::int64_t{0}))
          .set("bytes", RecordValue{})
          .set("gb_per_s", RecordValue{});
      record.set("result_hash", method.result_hash);
      records.push_back(std::move(record));
      continue;
    }
    for (const PhaseResult& phase : method.phases) {
      const std::int64_t bytes = phase_bytes(result, method, phase.phase);
      Record record = base_record(result, method, phase.phase);
      record.set("placement", phase.placement);
      set_times(record, phase);
      record.set("cv", phase.us.coefficient_of_variation)
          .set("samples", phase.us.count)
          .set("bytes", bytes)
          .set("gb_per_s", gb_per_s(bytes, phase.us.median));
      const char* const names[] = {"dispatch", "touch", "combine", "total"};
      for (std::size_t i = 0; i < 4; ++i)
        if (phase.phase == names[i]) record.set("cold_us", method.cold_us[i]);
      if (result.nodes > 1) set_crossing(record, method.crossing, phase.phase);
      record.set("result_hash", method.result_hash);
      records.push_back(std::move(record));
    }
  }
  return records;
}

}  // namespace shunt::bench

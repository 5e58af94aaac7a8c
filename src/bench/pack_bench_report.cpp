#include <fmt/format.h>

#include <shunt/bench/pack_bench.h>

namespace shunt::bench {
namespace {

std::string time_text(double us) {
  return us < 10     ? fmt::format("{:.3f}", us)
         : us < 1000 ? fmt::format("{:.2f}", us)
                     : fmt::format("{:.1f}", us);
}

std::string scale_name(const PackBenchOptions& options) {
  if (!is_fp8(options.payload) || options.scale == ScaleType::none) return "";
  return options.scale == ScaleType::ue8m0 ? "ue8m0" : "float32";
}

}  // namespace

std::string format_pack_table(const PackBenchReport& report, const PackBenchOptions& options) {
  std::string text = fmt::format("# shunt {} ({}) bench pack\n", version(), git_revision());
  if (!report.note.empty()) text += fmt::format("# {}\n", report.note);
  text += fmt::format("# device {}: {}\n", report.device, report.description);
  const std::string scale = scale_name(options);
  text += fmt::format("# tokens {} -> rows {}{}; results {}; {} iterations after {} of warm-up, caches {}\n",
                      dtype_name(options.in_dtype), dtype_name(options.payload),
                      scale.empty() ? "" : " with scales " + scale, dtype_name(options.out_dtype),
                      options.iterations, options.warmup, options.cold ? "cold" : "warm");
  text += "# GB/s: bytes read and written / median; copy: as many bytes as the rows, copied in one piece\n";
  const PackRow* last = nullptr;
  for (const PackRow& row : report.rows) {
    const bool same = last != nullptr && last->preset == row.preset && last->tokens == row.tokens &&
                      last->routing == row.routing;
    if (!same) {
      text += fmt::format("{}{}: {} experts, top-{}, hidden {}; {} tokens; routing {}\n",
                          last == nullptr ? "" : "\n", row.preset, row.num_experts, row.top_k, row.hidden,
                          row.tokens, row.routing);
      text += fmt::format("  {:<8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>11}\n", "phase",
                          "median us", "mean", "min", "max", "std", "p99", "GB/s", "Mtokens/s");
    }
    text +=
        fmt::format("  {:<8} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9.2f} {:>11.3f}\n", row.phase,
                    time_text(row.us.median), time_text(row.us.mean), time_text(row.us.min),
                    time_text(row.us.max), time_text(row.us.stddev), time_text(row.us.p99), row.gb_per_s(),
                    row.us.median > 0 ? static_cast<double>(row.tokens) / row.us.median : 0.0);
    if (!row.correct && !same) text += fmt::format("# wrong: {}\n", row.reason);
    last = &row;
  }
  return text;
}

std::vector<Record> pack_records(const PackBenchReport& report, const PackBenchOptions& options) {
  std::vector<Record> records;
  for (const PackRow& row : report.rows) {
    Record record("result");
    record.set("bench", "pack")
        .set("method", report.device)
        .set("phase", row.phase)
        .set("status", row.correct ? "ok" : "failed")
        .set("reason", row.reason)
        .set("correct", row.correct)
        .set("preset", row.preset)
        .set("experts", std::int64_t{row.num_experts})
        .set("topk", std::int64_t{row.top_k})
        .set("hidden", row.hidden)
        .set("tokens", row.tokens)
        .set("in_dtype", dtype_name(options.in_dtype))
        .set("payload", dtype_name(options.payload))
        .set("scale", scale_name(options))
        .set("out_dtype", dtype_name(options.out_dtype))
        .set("routing", row.routing)
        .set("median_us", row.us.median)
        .set("mean_us", row.us.mean)
        .set("p90_us", row.us.p90)
        .set("p99_us", row.us.p99)
        .set("min_us", row.us.min)
        .set("max_us", row.us.max)
        .set("std_us", row.us.stddev)
        .set("samples", row.us.count)
        .set("bytes", row.bytes)
        .set("gb_per_s", row.gb_per_s());
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace shunt::bench

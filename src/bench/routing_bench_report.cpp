#include <cmath>

#include <fmt/format.h>

#include <shunt/bench/routing_bench.h>
#include <shunt/core/host.h>

namespace shunt::bench {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;

/// Bytes per second of a mean time.
double rate(std::int64_t bytes, const RoutingRow& row) {
  return row.ms.mean > 0 ? static_cast<double>(bytes) / row.ms.mean * 1e3 : 0;
}

double tokens_per_s(const RoutingResult& result, const RoutingRow& row) {
  return row.ms.mean > 0 ? static_cast<double>(result.point.tokens) / row.ms.mean * 1e3 : 0;
}

/// Of the copy in the same run; 0 where there is none.
double copy_share(const RoutingResult& result, const RoutingRow& row) {
  if (result.rows.back().impl != "copy" || row.ms.mean <= 0) return 0;
  return result.rows.back().ms.mean / row.ms.mean;
}

std::string head(const RoutingResult& result) {
  const RoutingPoint& p = result.point;
  const bool topk = p.work == RoutingWork::topk;
  std::string text =
      fmt::format("# shunt {} ({}) bench {}\n", version(), git_revision(), routing_work_name(p.work));
  text += fmt::format("# {} of {}; {} tokens, {}{} experts, top-{}, {}; seed {}\n",
                      p.threads == 1 ? std::string("one core") : fmt::format("{} threads", p.threads),
                      read_host_info().cpu_model, p.tokens, topk ? "" : fmt::format("hidden {}, ", p.hidden),
                      p.num_experts, result.requested_k, dtype_name(p.dtype), p.seed);
  if (!topk)
    text += fmt::format(
        "# strict: {} hidden elements = {} bytes per token; kept: what is moved without the dropped; copy: "
        "strict bytes copied in one piece\n",
        p.work == RoutingWork::pack_only || p.work == RoutingWork::combine_only ? "1 + k" : "2 + 2k",
        result.bytes_per_token_strict());
  if (!p.router.empty())
    text += fmt::format(
        "# router {} made the logits of normal tokens in {:.3f} ms, run once; jitter {}, noise {}\n",
        p.router, result.router_ms, p.jitter, p.noise);
  text += fmt::format("# load_cv {:.6f} of all choices, max/mean {:.4f}; gate_entropy {:.6f}\n",
                      result.load.cv, result.load.max_over_mean, result.gate.entropy);
  return text;
}

/// How libtorch did it, and how far ahead of it the others are.
std::string torch_lines(const RoutingResult& result) {
  std::string text;
  for (const RoutingRow& row : result.rows) {
    if (row.impl == "torch")
      text += fmt::format("# torch: {}\n", row.written);
    else if (row.impl != "copy" && result.speedup_over("torch", row) > 0)
      text +=
          fmt::format("# {} is {:.2f} times as fast as torch\n", row.impl, result.speedup_over("torch", row));
  }
  return text;
}

std::string topk_lines(const RoutingResult& result) {
  std::string text = fmt::format("{:<8} {:<12} {:>10} {:>9} {:>10} {:>10} {:>10} {:>8} {:>11}\n", "impl",
                                 "kernels", "avg ms", "std", "median", "p99", "min", "samples", "Mtokens/s");
  for (const RoutingRow& row : result.rows) {
    text += fmt::format("{:<8} {:<12} {:>10.3f} {:>9.3f} {:>10.3f} {:>10.3f} {:>10.3f} {:>8} {:>11.3f}\n",
                        row.impl, row.isa, row.ms.mean, row.ms.stddev, row.ms.median, row.ms.p99, row.ms.min,
                        row.ms.count, tokens_per_s(result, row) / 1e6);
  }
  return text;
}

std::string moves_header() {
  return fmt::format("{:<8} {:<12} {:>10} {:>9} {:>10} {:>10} {:>10} {:>8} {:>10} {:>9} {:>9} {:>9} {:>6}\n",
                     "impl", "kernels", "avg ms", "std", "median", "pack ms", "comb. ms", "samples",
                     "Mtokens/s", "GiB/s", "GB/s", "kept GB/s", "copy");
}

std::string moves_lines(const RoutingResult& result) {
  std::string text;
  for (const RoutingRow& row : result.rows) {
    const bool copy = row.impl == "copy";
    const double strict = rate(result.strict_bytes(), row);
    const auto only_moves = [copy](double value) {
      return copy || !(value > 0) ? std::string("-") : fmt::format("{:.3f}", value);
    };
    text += fmt::format(
        "{:<8} {:<12} {:>10.3f} {:>9.3f} {:>10.3f} {:>10} {:>10} {:>8} {:>10} {:>9.2f} {:>9.2f} {:>9} "
        "{:>5.0f}%\n",
        row.impl, row.isa, row.ms.mean, row.ms.stddev, row.ms.median, only_moves(row.pack_ms),
        only_moves(row.combine_ms), row.ms.count, only_moves(tokens_per_s(result, row) / 1e6), strict / kGiB,
        strict / 1e9, copy ? "-" : fmt::format("{:.2f}", rate(result.kept_bytes(), row) / 1e9),
        100 * copy_share(result, row));
  }
  return text;
}

/// As the old benchmarks called their records, without the name of the implementation.
std::string old_name(RoutingWork work) {
  switch (work) {
    case RoutingWork::topk:
      return "topk";
    case RoutingWork::routing:
      return "routing_identity";
    case RoutingWork::capacity:
      return "pack_capacity";
    case RoutingWork::pack_only:
      return "pack_only";
    case RoutingWork::combine_only:
      return "combine_only";
  }
  return "unknown";
}

}  // namespace

std::string routing_work_name(RoutingWork work) {
  switch (work) {
    case RoutingWork::topk:
      return "topk";
    case RoutingWork::routing:
      return "routing";
    case RoutingWork::capacity:
      return "capacity";
    case RoutingWork::pack_only:
      return "pack-only";
    case RoutingWork::combine_only:
      return "combine";
  }
  return "unknown";
}

std::string format_routing_table(const std::vector<RoutingResult>& results) {
  if (results.empty()) return {};
  std::string text = head(results.front());
  const RoutingWork work = results.front().point.work;
  if (work != RoutingWork::topk) text += moves_header();
  for (const RoutingResult& result : results) {
    if (work == RoutingWork::capacity)
      text += fmt::format(
          "capacity factor {}: {} tokens per expert; avg_drop_rate {:.6f}, token_drop_rate {:.6f}, kept "
          "load_cv {:.6f}, used_capacity {:.4f}\n",
          result.point.capacity_factor, result.capacity, result.avg_drop_rate, result.token_drop_rate,
          result.kept_load.cv, result.used_capacity);
    text += work == RoutingWork::topk ? topk_lines(result) : moves_lines(result);
    text += torch_lines(result);
    for (const RoutingRow& row : result.rows)
      if (!row.correct) text += fmt::format("# wrong: {}: {}\n", row.impl, row.reason);
  }
  return text;
}

std::vector<Record> routing_records(const RoutingResult& result) {
  const RoutingPoint& p = result.point;
  std::vector<Record> records;
  for (const RoutingRow& row : result.rows) {
    Record record("result");
    record.set("bench", routing_work_name(p.work))
        .set("name", old_name(p.work))
        .set("impl", row.impl)
        .set("isa", row.isa)
        .set("written", row.written)
        .set("device", "cpu")
        .set("status", row.correct ? "ok" : "failed")
        .set("reason", row.reason)
        .set("correct", row.correct)
        .set("num_tokens", p.tokens)
        .set("num_experts", std::int64_t{p.num_experts})
        .set("top_k", std::int64_t{result.requested_k})
        .set("row_width", std::int64_t{p.top_k})
        .set("dtype", dtype_name(p.dtype))
        .set("gate", p.gate)
        .set("threads", std::int64_t{p.threads})
        .set("seed", static_cast<std::int64_t>(p.seed))
        .set("warmup", p.warmup)
        .set("iters", row.ms.count)
        .set("avg_ms", row.ms.mean)
        .set("std_ms", row.ms.stddev)
        .set("median_ms", row.ms.median)
        .set("p90_ms", row.ms.p90)
        .set("p99_ms", row.ms.p99)
        .set("min_ms", row.ms.min)
        .set("max_ms", row.ms.max)
        .set("tokens_per_s", tokens_per_s(result, row))
        .set("load_mean", result.load.mean)
        .set("load_std", result.load.cv * (result.load.mean + 1e-9))
        .set("load_cv", result.load.cv)
        .set("max_over_mean", result.load.max_over_mean)
        .set("gate_entropy", result.gate.entropy)
        .set("mean_topk_prob", result.gate.mean_topk_prob);
    if (p.work != RoutingWork::topk) {
      // The copy moves what the strict formula says, whatever was dropped.
      const double kept = row.impl == "copy" ? std::nan("") : rate(result.kept_bytes(), row);
      record.set("hidden_dim", p.hidden)
          .set("weighted", p.weighted)
          .set("pack_ms", row.pack_ms)
          .set("combine_ms", row.combine_ms)
          .set("bytes_per_token_strict", result.bytes_per_token_strict())
          .set("bytes_strict", result.strict_bytes())
          .set("bytes_kept", result.kept_bytes())
          .set("bw_GiBps_strict", rate(result.strict_bytes(), row) / kGiB)
          .set("bw_GBps_strict", rate(result.strict_bytes(), row) / 1e9)
          .set("bw_GiBps_kept", kept / kGiB)
          .set("bw_GBps_kept", kept / 1e9)
          .set("share_of_copy", copy_share(result, row))
          .set("router_arch", p.router)
          .set("temperature", p.temperature)
          .set("jitter", p.jitter)
          .set("noise", p.noise)
          .set("balance_steps", p.balance_steps)
          .set("router_ms", result.router_ms);
    }
    if (const double ahead = result.speedup_over("torch", row); ahead > 0)
      record.set("speedup_over_torch", ahead);
    if (p.work == RoutingWork::capacity)
      record.set("capacity_factor", p.capacity_factor)
          .set("capacity_formula", std::string(capacity_formula_name(p.formula)))
          .set("capacity", result.capacity)
          .set("avg_drop_rate", result.avg_drop_rate)
          .set("token_drop_rate", result.token_drop_rate)
          .set("used_capacity", result.used_capacity)
          .set("kept_load_cv", result.kept_load.cv)
          .set("renorm_after_drop", p.renormalise != Renormalise::no);
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace shunt::bench

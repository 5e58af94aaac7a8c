#include <fmt/format.h>

#include <shunt/bench/layer_bench.h>
#include <shunt/core/host.h>

namespace shunt::bench {
namespace {

double per_second(double amount, double ms) {
  return ms > 0 ? amount / ms * 1e3 : 0;
}

double tokens_per_s(const LayerResult& result, const LayerRow& row) {
  return per_second(static_cast<double>(result.point.tokens * result.point.ranks), row.total_ms.mean);
}

double tflops(const LayerResult& result, const LayerRow& row) {
  return per_second(static_cast<double>(result.flops), row.total_ms.mean) / 1e12;
}

/// Of the first row; 0 where there is none.
double torch_over(const LayerResult& result, const LayerRow& row) {
  for (const LayerRow& other : result.rows)
    if (other.impl == "torch" && row.total_ms.median > 0) return other.total_ms.median / row.total_ms.median;
  return 0;
}

}  // namespace

std::string format_layer_table(const LayerResult& result) {
  const LayerPoint& p = result.point;
  std::string text = fmt::format("# shunt {} ({}) bench layer\n", version(), git_revision());
  text += fmt::format(
      "# {}; {} rank{} of {} thread{}; {} tokens each, hidden {}, ffn {}, {} experts, {} shared, top-{}, {}, "
      "{}, "
      "gate {}; seed {}\n",
      read_host_info().cpu_model, p.ranks, p.ranks == 1 ? "" : "s", p.threads, p.threads == 1 ? "" : "s",
      p.tokens, p.hidden, p.inner(), p.num_experts, p.shared_experts, p.top_k, p.activation,
      dtype_name(p.dtype), p.gate, p.seed);
  if (p.capacity_factor > 0)
    text += fmt::format("# capacity factor {}: drop_rate {:.6f}\n", p.capacity_factor, result.drop_rate);
  text +=
      fmt::format("{:<7} {:>11} {:>11} {:>11} {:>10} {:>9} {:>8} {:>12} {:>9} {:>7}\n", "impl", "forward ms",
                  "backward", "total", "median", "std", "samples", "tokens/s", "TFLOP/s", "x torch");
  for (const LayerRow& row : result.rows) {
    const double over = torch_over(result, row);
    text +=
        fmt::format("{:<7} {:>11.3f} {:>11.3f} {:>11.3f} {:>10.3f} {:>9.3f} {:>8} {:>12.0f} {:>9.3f} {:>7}\n",
                    row.impl, row.forward_ms.mean, row.backward_ms.mean, row.total_ms.mean,
                    row.total_ms.median, row.total_ms.stddev, row.total_ms.count, tokens_per_s(result, row),
                    tflops(result, row), over > 0 ? fmt::format("{:.2f}", over) : "-");
  }
  for (const LayerRow& row : result.rows) {
    text += fmt::format("# {}: {}\n", row.impl, row.by);
    if (row.impl == "shunt") {
      text += fmt::format("#   forward  ms: route {:.3f}, dispatch {:.3f}, ffn {:.3f}, combine {:.3f}\n",
                          row.route_ms, row.dispatch_ms, row.ffn_ms, row.combine_ms);
      if (p.backward)
        text += fmt::format("#   backward ms: dispatch {:.3f}, ffn {:.3f}, route {:.3f}, combine {:.3f}\n",
                            row.back_dispatch_ms, row.back_ffn_ms, row.back_route_ms, row.back_combine_ms);
    }
    if (!row.correct) text += fmt::format("# wrong: {}: {}\n", row.impl, row.reason);
  }
  return text;
}

std::vector<Record> layer_records(const LayerResult& result) {
  const LayerPoint& p = result.point;
  std::vector<Record> records;
  for (const LayerRow& row : result.rows) {
    Record record("result");
    record.set("bench", "layer")
        .set("name", "moe_layer")
        .set("impl", row.impl)
        .set("by", row.by)
        .set("device", "cpu")
        .set("status", row.correct ? "ok" : "failed")
        .set("reason", row.reason)
        .set("correct", row.correct)
        .set("num_tokens", p.tokens)
        .set("hidden_dim", p.hidden)
        .set("ffn_dim", p.inner())
        .set("num_experts", std::int64_t{p.num_experts})
        .set("top_k", std::int64_t{p.top_k})
        .set("strategy", p.gate)
        .set("activation", p.activation)
        .set("bias", p.bias)
        .set("shared_experts", std::int64_t{p.shared_experts})
        .set("dtype", dtype_name(p.dtype))
        .set("capacity_factor", p.capacity_factor > 0 ? RecordValue(p.capacity_factor) : RecordValue())
        .set("avg_drop_rate", result.drop_rate)
        .set("backward", p.backward)
        .set("ranks", std::int64_t{p.ranks})
        .set("threads", std::int64_t{p.threads})
        .set("seed", static_cast<std::int64_t>(p.seed))
        .set("warmup", p.warmup)
        .set("iters", row.total_ms.count)
        .set("forward_ms", row.forward_ms.mean)
        .set("backward_ms", row.backward_ms.mean)
        .set("total_ms", row.total_ms.mean)
        .set("std_ms", row.total_ms.stddev)
        .set("median_ms", row.total_ms.median)
        .set("p90_ms", row.total_ms.p90)
        .set("p99_ms", row.total_ms.p99)
        .set("min_ms", row.total_ms.min)
        .set("max_ms", row.total_ms.max)
        .set("tokens_per_s", tokens_per_s(result, row))
        .set("flops", result.flops)
        .set("tflops_total", tflops(result, row));
    if (row.impl == "shunt") {
      const double moves = row.dispatch_ms + row.combine_ms;
      record.set("router_ms", row.route_ms)
          .set("pack_ms", row.dispatch_ms)
          .set("ffn_ms", row.ffn_ms)
          .set("combine_ms", row.combine_ms)
          .set("routing_share", row.forward_ms.mean > 0 ? moves / row.forward_ms.mean : 0.0)
          .set("back_dispatch_ms", row.back_dispatch_ms)
          .set("back_ffn_ms", row.back_ffn_ms)
          .set("back_route_ms", row.back_route_ms)
          .set("back_combine_ms", row.back_combine_ms);
      if (const double over = torch_over(result, row); over > 0) record.set("torch_over_shunt", over);
    }
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace shunt::bench

#include <algorithm>

#include <fmt/format.h>

#include <shunt/bench/overlap_bench.h>
#include <shunt/core/error.h>

#include "record_fields.h"

namespace shunt::bench {
namespace {

constexpr const char* kPhases[] = {"dispatch", "combine", "total"};

const PhaseResult* find(const PointResult& result, const char* way, const std::string& placement,
                        const std::string& phase) {
  for (const MethodResult& method : result.methods)
    if (method.name == way && method.status == "ok") return method.find(placement, phase);
  return nullptr;
}

bool complete(const PointResult& result, const std::string& placement) {
  return std::all_of(kOverlapWays.begin(), kOverlapWays.end(),
                     [&](const char* way) { return find(result, way, placement, "total") != nullptr; });
}

std::string time_text(double us) {
  return us < 10     ? fmt::format("{:.2f}", us)
         : us < 1000 ? fmt::format("{:.1f}", us)
                     : fmt::format("{:.0f}", us);
}

std::string hidden_text(const PointResult& result, const std::string& placement, const char* phase) {
  const Hidden hidden = hidden_share(result, placement, phase);
  return fmt::format("{:.0f} % [{:.0f} .. {:.0f}] of at most {:.0f}", 100 * hidden.share, 100 * hidden.low,
                     100 * hidden.high, 100 * hidden.most);
}

const MethodResult* with_product(const PointResult& result) {
  for (const MethodResult& method : result.methods)
    if (!method.work.empty()) return &method;
  return nullptr;
}

}  // namespace

Hidden hidden_share(const PointResult& result, const std::string& placement, const std::string& phase) {
  std::array<const PhaseResult*, kOverlapWays.size()> found{};
  for (std::size_t i = 0; i < kOverlapWays.size(); ++i) {
    found.at(i) = find(result, kOverlapWays.at(i), placement, phase);
    if (found.at(i) == nullptr)
      throw Error(Errc::unavailable,
                  fmt::format("{} was not measured in placement {}", kOverlapWays.at(i), placement));
  }
  const SampleSummary& communication = found[0]->us;
  const SampleSummary& gemm = found[1]->us;
  const SampleSummary& serial = found[2]->us;
  const SampleSummary& overlapped = found[3]->us;
  if (communication.median <= 0) return {};
  const double whole = communication.median;
  return {.share = (serial.median - overlapped.median) / whole,
          .low = (serial.median_low - overlapped.median_high) / whole,
          .high = (serial.median_high - overlapped.median_low) / whole,
          .most = std::min(whole, gemm.median) / whole};
}

std::string format_overlap_point(const PointResult& result) {
  const Point& point = result.point;
  std::string text = fmt::format(
      "\n{}: {} experts, top-{}, hidden {}; {} tokens, {} ranks on {} node{}, {}, routing {}; transport "
      "{}{}{}\n",
      point.preset, point.num_experts, point.top_k, point.hidden, point.tokens, point.ranks, result.nodes,
      result.nodes == 1 ? "" : "s", dtype_name(point.in_dtype), point.routing_label, result.transport,
      result.provider.empty() ? "" : ", ", result.provider);
  for (const MethodResult& method : result.methods)
    if (method.status != "ok") text += fmt::format("{} {}: {}\n", method.name, method.status, method.reason);
  const std::string placement = result.main_placement();
  if (placement.empty() || !complete(result, placement))
    return text + "not every way was measured in one placement class; give more --max-seconds\n";
  if (const MethodResult* const product = with_product(result); product != nullptr)
    text += fmt::format(
        "product of each rank, once in each half: {}; alone {:.1f} GFLOP/s per rank\n", product->work,
        static_cast<double>(product->flops) / find(result, "gemm", placement, "total")->us.median / 1e3);
  text += fmt::format("  {:<14} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}\n", placement, "dispatch us", "p99",
                      "combine us", "p99", "both us", "p99");
  for (const char* way : kOverlapWays) {
    text += fmt::format("  {:<14}", way);
    for (const char* phase : kPhases) {
      const SampleSummary& us = find(result, way, placement, phase)->us;
      text += fmt::format(" {:>10} {:>10}", time_text(us.median), time_text(us.p99));
    }
    text += fmt::format("  ({} rounds, {} samples)\n", find(result, way, placement, "total")->rounds,
                        find(result, way, placement, "total")->us.count);
  }
  text +=
      fmt::format("  hidden: dispatch {}; combine {}; both {}\n", hidden_text(result, placement, "dispatch"),
                  hidden_text(result, placement, "combine"), hidden_text(result, placement, "total"));
  const std::int64_t fewest = [&] {
    std::int64_t rounds = result.required_rounds;
    for (const char* way : kOverlapWays)
      rounds = std::min(rounds, find(result, way, placement, "total")->rounds);
    return rounds;
  }();
  if (fewest < result.required_rounds)
    text += fmt::format("  a hint only: {} rounds where {} are needed; give more --max-seconds\n", fewest,
                        result.required_rounds);
  return text;
}

std::vector<Record> overlap_records(const PointResult& result, const OverlapBenchReport& report) {
  std::vector<Record> records;
  const MethodResult* const product = with_product(result);
  const auto base = [&](const char* method, const std::string& phase, const std::string& placement) {
    Record record("result");
    record.set("bench", "overlap")
        .set("method", method)
        .set("phase", phase)
        .set("device", report.device)
        .set("library", report.library);
    set_point(record, result);
    record.set("gemm", product == nullptr ? std::string() : product->work)
        .set("gemm_flops", product == nullptr ? std::int64_t{0} : product->flops)
        .set("placement", placement);
    return record;
  };
  for (const MethodResult& method : result.methods)
    for (const PhaseResult& phase : method.phases) {
      if (phase.phase == "touch") continue;
      Record record = base(method.name.c_str(), phase.phase, phase.placement);
      record.set("status", method.status).set("reason", method.reason).set("correct", method.correct);
      set_times(record, phase);
      record.set("samples", phase.us.count);
      records.push_back(std::move(record));
    }
  for (const std::string& placement : result.placements()) {
    if (!complete(result, placement)) continue;
    for (const char* phase : kPhases) {
      const Hidden hidden = hidden_share(result, placement, phase);
      Record record = base("hidden", phase, placement);
      record.set("hidden_share", hidden.share)
          .set("hidden_low", hidden.low)
          .set("hidden_high", hidden.high)
          .set("hidden_most", hidden.most);
      records.push_back(std::move(record));
    }
  }
  return records;
}

}  // namespace shunt::bench

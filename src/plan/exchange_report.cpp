#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/plan/environment.h>
#include <shunt/plan/exchange.h>

namespace shunt::plan {
namespace {

/// Name of the fabric in `plan env` that carries the slowest part of the exchange.
std::string fabric_of(const Machine& machine, std::int32_t domains) {
  if (domains > 1) {
    switch (machine.node.nic.link.fabric) {
      case Fabric::ethernet:
        return "ethernet";
      case Fabric::efa:
        return "efa";
      default:
        return "ib";
    }
  }
  return machine.node.domain_gpus > machine.node.gpus ? "nvl72" : "nvlink";
}

double tenths(double value) {
  return std::round(value * 10) / 10;
}

Table choices_table(const ExchangePlan& plan) {
  Table table{"choices",
              {{"library", "library"},
               {"path", "path"},
               {"dispatch_payload", "dispatch"},
               {"deduplicated", "dedup"},
               {"presum", "presum"},
               {"dispatch_us", "dispatch us"},
               {"combine_us", "combine us"},
               {"total_us", "both us"},
               {"source", "times from"},
               {"sms", "SMs"},
               {"qps", "QPs"},
               {"near_chunk", "chunk near"},
               {"far_chunk", "far"},
               {"near_bytes", "scale-up", Unit::bytes},
               {"far_bytes", "network", Unit::bytes},
               {"buffer_bytes", "buffers", Unit::bytes}},
              {}};
  const auto count = [](std::int64_t value) { return value > 0 ? RecordValue(value) : RecordValue(); };
  for (const ExchangeChoice& c : plan.choices) {
    table.rows.push_back({c.library, std::string(exchange_path_name(c.path)), c.dispatch_payload,
                          c.deduplicated, c.presum, tenths(c.dispatch_us), tenths(c.combine_us),
                          tenths(c.us()),
                          c.fitted ? fmt::format("fit ({})", c.fit_hardware) : std::string("tiers"),
                          count(c.sms), count(c.qps), count(c.near_chunk), count(c.far_chunk),
                          std::round(c.near_bytes), std::round(c.far_bytes),
                          c.buffer_bytes >= 0 ? RecordValue(std::round(c.buffer_bytes)) : RecordValue()});
  }
  return table;
}

/// What to set in AllToAllConfig (or on the command line of the benchmark) for `c`.
Table shunt_table(const ModelSpec& model, const ExchangeOptions& o, const ExchangeChoice& c) {
  Table table{"shunt_config", {{"field", "AllToAllConfig"}, {"value", "value"}, {"why", "why"}}, {}};
  const auto add = [&](const char* field, const std::string& value, const std::string& why) {
    table.rows.push_back({std::string(field), value, why});
  };
  add("max_tokens", fmt::format("{}", o.tokens), "tokens of a rank in one step");
  add("num_experts", fmt::format("{}", model.experts + o.redundant_experts),
      o.redundant_experts > 0 ? "with redundant ones" : "routed experts of a layer");
  add("top_k", fmt::format("{}", model.top_k), "");
  add("hidden", fmt::format("{}", model.hidden), "");
  if (c.dispatch_payload == "fp8_block128") {
    add("payload", "DType::f8e4m3", "half of the bytes; the gather quantises");
    add("scale", "ScaleType::f32", "one for each block");
    add("scale_block", "128", "as the products of fp8_block experts expect it");
  } else {
    add("payload", "DType::bf16", "fp8 would not be faster here, or was not asked for");
  }
  add("path", c.path == ExchangePath::flat ? "Path::flat" : "Path::hierarchical",
      c.path == ExchangePath::flat ? "one message for each rank"
                                   : "a token crosses once for each domain, on its rail");
  add("presum", c.presum ? "true" : "false",
      c.presum ? "one row of results for each domain; another rounding"
               : "one row of results for each expert, bits as on one host");
  add("layout", "RowLayout::packed",
      o.tokens <= 256 ? "RowLayout::padded where a captured graph needs fixed places"
                      : "no holes for grouped products");
  return table;
}

}  // namespace

Report report_exchange(const ModelSpec& model, const Machine& machine, const ExchangeOptions& o,
                       const CostModel* fits) {
  const ExchangePlan plan = plan_exchange(model, machine, o, fits);
  // Kernels as measured, where there are any: what bytes and rates need at least is no rival of theirs.
  auto found = std::find_if(plan.choices.begin(), plan.choices.end(),
                            [](const ExchangeChoice& c) { return c.measured; });
  if (found == plan.choices.end())
    found = std::find_if(plan.choices.begin(), plan.choices.end(),
                         [](const ExchangeChoice& c) { return c.fitted; });
  const ExchangeChoice& best = found != plan.choices.end() ? *found : plan.choices.front();
  std::string of;
  if (best.measured)
    of = fmt::format(" of those that were measured on {}", machine.node.gpu.name);
  else if (best.fitted)
    of = fmt::format(" of those with a fit, measured on {} and carried over by the data sheet",
                     best.fit_hardware);
  Report report("plan_alltoall");
  report.head.set("model", model.name)
      .set("node", machine.node.name)
      .set("hosts", machine.hosts)
      .set("ep", o.ep)
      .set("domains", static_cast<std::int64_t>(plan.domains))
      .set("tokens", o.tokens)
      .set("experts", model.experts + o.redundant_experts)
      .set("imbalance", o.imbalance)
      .set("combine_payload", o.combine_payload)
      .set("ranks_per_token", plan.destinations.ranks)
      .set("domains_per_token", plan.destinations.nodes)
      .set("best", best.library)
      .set("best_path", exchange_path_name(best.path))
      .set("best_dispatch_payload", best.dispatch_payload)
      .set("best_us", best.us())
      .set("best_measured", best.measured);
  report.summary.push_back(
      fmt::format("{} tokens of a rank, {} experts over {} ranks in {} scale-up domains; a token reaches "
                  "{:.3f} ranks in {:.3f} domains",
                  o.tokens, model.experts + o.redundant_experts, o.ep, plan.domains, plan.destinations.ranks,
                  plan.destinations.nodes));
  report.summary.push_back(fmt::format("fastest{}: {} with {} over the {} path, {:.1f} + {:.1f} us", of,
                                       best.library, best.dispatch_payload, exchange_path_name(best.path),
                                       best.dispatch_us, best.combine_us));
  report.tables.push_back(choices_table(plan));
  const auto own = std::find_if(plan.choices.begin(), plan.choices.end(),
                                [](const ExchangeChoice& c) { return c.library == "shunt" && !c.presum; });
  if (own != plan.choices.end()) report.tables.push_back(shunt_table(model, o, *own));
  EnvironmentOptions environment;
  environment.fabric = fabric_of(machine, plan.domains);
  environment.gpus = o.ep;
  report.head.set("fabric", environment.fabric);
  Table settings = report_environment(environment).tables.front();
  settings.key = "environment";
  if (best.library == "deepep-ll" && plan.domains > 1) {
    const std::string depth = fmt::format("{}", std::max<std::int64_t>(1024, 2 * (o.tokens + 1)));
    settings.rows.push_back({std::string("nvshmem"), std::string("NVSHMEM_QP_DEPTH"), depth,
                             fmt::format("export NVSHMEM_QP_DEPTH={}", depth),
                             std::string("at least two entries for each token and one more")});
  }
  report.tables.push_back(settings);
  report.notes.insert(report.notes.end(), plan.notes.begin(), plan.notes.end());
  for (const std::string& refused : plan.refused)
    report.notes.push_back(fmt::format("left out: {}", refused));
  report.notes.emplace_back(
      "\"tiers\" are bytes over rates and latencies, what a well-made kernel needs at least; \"fit\" are "
      "kernels as measured on the hardware in brackets: "
      "compare like with like");
  if (best.dispatch_payload != "bfloat16")
    report.notes.push_back(
        fmt::format("{} rows round the tokens: choose it where the experts multiply in it anyway",
                    best.dispatch_payload));
  if (plan.domains > 1 && machine.node.nic.link.fabric == Fabric::efa)
    report.notes.emplace_back("kernels on EFA work through proxies, which none of these times has");
  return report;
}

}  // namespace shunt::plan

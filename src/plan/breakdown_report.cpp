#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/plan/affinity.h>
#include <shunt/plan/breakdown.h>

namespace shunt::plan {
namespace {

constexpr std::int64_t kMostRanks = 512;

/// What must hold; what does not hold at all has thrown before.
Table checks_table(const ModelSpec& model, const Machine& machine, const PlanResult& r,
                   const std::vector<ParallelGroup>& groups) {
  Table table{"checks", {{"check", "check"}, {"ok", "ok"}, {"detail", "detail"}}, {}};
  const auto add = [&](const char* check, bool ok, const std::string& detail) {
    table.rows.push_back({std::string(check), ok, detail});
  };
  const Layout& l = r.time.options.layout;
  add("GPUs", l.world() == machine.gpus(),
      fmt::format("tp {} * cp {} * dp {} * pp {} = {} of {}", l.tp, l.cp, l.dp, l.pp, l.world(),
                  machine.gpus()));
  add("experts", true,
      model.experts == 0 ? std::string("none")
                         : fmt::format("{} of {} on a rank; etp {} * ep {} * edp {} = {} ranks of a stage",
                                       (model.experts + l.redundant_experts) / l.ep, model.experts, l.etp,
                                       l.ep, l.edp(), l.tp * l.cp * l.dp));
  add("layers", true,
      fmt::format("{} on {} stages, {} at most", model.layers.size(), l.pp,
                  *std::max_element(l.stage_layers.begin(), l.stage_layers.end())));
  add("memory", r.fits,
      fmt::format("{} of {} on stage {}", show_bytes(r.memory.worst_stage().total()),
                  show_bytes(r.memory.budget()), r.memory.worst_stage().stage));
  for (const ParallelGroup& group : groups) {
    if (group.name != "tp" && group.name != "ep") continue;
    if (group.size == 1) continue;
    add(group.name == "tp" ? "tp in one domain" : "ep in one domain", group.place.domains == 1,
        fmt::format("{} ranks, every {}, in {} domains of {} GPUs", group.size, group.stride,
                    group.place.domains, machine.domain()));
  }
  return table;
}

Table groups_table(const Machine& machine, const Layout& l, const std::vector<ParallelGroup>& groups) {
  Table table{"groups",
              {{"group", "group"},
               {"size", "ranks"},
               {"stride", "every"},
               {"groups", "groups"},
               {"near", "in one domain"},
               {"domains", "domains"},
               {"tier", "slowest tier"},
               {"first", "first group"}},
              {}};
  for (const ParallelGroup& group : groups) {
    std::string first;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(group.size, 4); ++i)
      first += fmt::format("{}{}", i == 0 ? "" : " ", i * group.stride);
    if (group.size > 4) first += fmt::format(" .. {}", (group.size - 1) * group.stride);
    table.rows.push_back({group.name, group.size, group.stride, l.world() / group.size, group.place.near,
                          group.place.domains,
                          std::string(group.size == 1 ? "-" : tier_name(group.place.tier(machine))), first});
  }
  return table;
}

Table ranks_table(const Machine& machine, const Layout& l) {
  Table table{"ranks",
              {{"rank", "rank", Unit::none, true},
               {"host", "host", Unit::none, true},
               {"domain", "domain", Unit::none, true},
               {"rail", "rail", Unit::none, true},
               {"pp", "pp", Unit::none, true},
               {"dp", "dp", Unit::none, true},
               {"cp", "cp", Unit::none, true},
               {"tp", "tp", Unit::none, true},
               {"edp", "edp", Unit::none, true},
               {"ep", "ep", Unit::none, true},
               {"etp", "etp", Unit::none, true}},
              {}};
  for (std::int64_t rank = 0; rank < std::min(l.world(), kMostRanks); ++rank) {
    const RankIndices i = rank_indices(l, rank);
    const RankPlace place = place_of_rank(machine, rank);
    table.rows.push_back(
        {rank, place.host, place.domain, place.rail, i.pp, i.dp, i.cp, i.tp, i.edp, i.ep, i.etp});
  }
  return table;
}

}  // namespace

Report report_step(const ModelSpec& model, const Machine& machine, const PlanOptions& options,
                   const CostModel* fits) {
  PlanOptions plan = options;
  plan.idle_gpus = true;
  const PlanResult r = evaluate_plan(model, machine, plan, fits);
  Report report = report_step_time(model, machine, r.time);
  report.head.set("fits", r.fits);
  if (!r.fits)
    report.notes.insert(report.notes.begin(),
                        fmt::format("it does not fit: {} too much (shunt plan breakdown lists the memory)",
                                    show_bytes(-r.margin_bytes())));
  return report;
}

Report report_breakdown(const ModelSpec& model, const Machine& machine, const PlanOptions& options,
                        const CostModel* fits) {
  const PlanResult r = evaluate_plan(model, machine, options, fits);
  const Layout& l = r.time.options.layout;
  const std::vector<ParallelGroup> groups = parallel_groups(machine, l);
  const Findings findings = judge(model, machine, r);
  Report report = report_step_time(model, machine, r.time);
  Record head("plan_breakdown");
  for (std::size_t i = 1; i < report.head.fields().size(); ++i)
    head.set(report.head.fields()[i].first, report.head.fields()[i].second);
  const std::vector<double> values = metric_values(r);
  for (std::size_t i = 0; i < values.size(); ++i)
    if (std::isfinite(values[i])) head.set(plan_metrics()[i].key, values[i]);
  head.set("name", fmt::format("{} on {} {}: {}", model.name, l.world(), machine.node.name, layout_name(l)))
      .set("fits", r.fits)
      .set("hot_spots", findings.hot_spots)
      .set("advice", findings.advice);
  report.head = head;
  const std::size_t step_tables = report.tables.size();
  std::vector<Table> tables = {checks_table(model, machine, r, groups), groups_table(machine, l, groups)};
  for (std::size_t i = 0; i < step_tables; ++i) tables.push_back(report.tables[i]);
  Table memory{"memory", {{"part", "memory of a GPU"}, {"bytes", "bytes", Unit::bytes}}, {}};
  const StageMemory& m = r.memory.worst_stage();
  for (const auto& [name, bytes] :
       std::vector<std::pair<const char*, double>>{{"weights", m.weights},
                                                   {"expert weights", m.expert_weights + m.redundant_experts},
                                                   {"gradients", m.gradients},
                                                   {"optimizer", m.optimizer},
                                                   {"gathered weights", m.gathered_weights},
                                                   {"activations", m.activations + m.router},
                                                   {"logits and temporary", m.logits + m.temporary},
                                                   {"KV cache and states", m.kv_cache + m.states},
                                                   {"communication", m.communication},
                                                   {"other and fragmentation", m.other + m.fragmentation},
                                                   {"total", m.total()}})
    if (bytes > 0) memory.rows.push_back({std::string(name), std::round(bytes)});
  tables.push_back(memory);
  tables.push_back(ranks_table(machine, l));
  report.tables = tables;
  report.csv_table = tables.size() - 1;
  report.summary.push_back(r.fits
                               ? fmt::format("it fits, with {} to spare", show_bytes(r.margin_bytes()))
                               : fmt::format("it does not fit: {} too much", show_bytes(-r.margin_bytes())));
  std::vector<std::string> notes;
  for (const std::string& text : findings.hot_spots) notes.push_back("hot spot: " + text);
  for (const std::string& text : findings.advice) notes.push_back("advice: " + text);
  notes.insert(notes.end(), report.notes.begin(), report.notes.end());
  if (l.world() > kMostRanks)
    notes.push_back(fmt::format("the list of ranks has the first {} of {}", kMostRanks, l.world()));
  report.notes = notes;
  return report;
}

}  // namespace shunt::plan

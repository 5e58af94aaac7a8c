#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/cluster/hardware.h>
#include <shunt/cluster/parameters.h>
#include <shunt/core/error.h>
#include <shunt/plan/memory.h>
#include <shunt/plan/step_time.h>

#include "lab_internal.h"

// The lab's pairs by our own cost model. What the lab leaves open is filled in by the rules of docs/planner.md.
namespace shunt::plan::lab {
namespace {

constexpr double kGiB = 1024.0 * 1024 * 1024;
constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kVocab = 51200;
/// Width of an expert is a multiple of this, so that 2, 3, 4 and 8 tensor-parallel ranks can share it.
constexpr std::int64_t kWidthStep = 24;
constexpr std::int64_t kRackGpus = 72;

double real(std::int64_t value) {
  return static_cast<double>(value);
}

/// A transformer with the lab's sizes whose parameters come to the lab's count: what attention, dense MLPs (4 H) and
/// embeddings leave of it is shared among the experts.
ModelSpec model_of(const Model& lab) {
  ModelSpec model;
  model.name = lab.name;
  model.hidden = lab.hidden;
  model.vocab = kVocab;
  model.gated = false;
  model.dense_intermediate = 4 * lab.hidden;
  model.experts = lab.experts;
  model.top_k = lab.top_k;
  model.attention.heads = model.attention.kv_heads = lab.hidden / kHeadDim;
  model.attention.head_dim = kHeadDim;
  model.layers.resize(static_cast<std::size_t>(lab.layers));
  for (std::int64_t i = 0; i < lab.layers; ++i)
    model.layers[static_cast<std::size_t>(i)].moe =
        (i + 1) * lab.moe_layers / lab.layers > i * lab.moe_layers / lab.layers;
  model.expert_intermediate = 0;
  const double rest = lab.params_billion * 1e9 - real(count_parameters(model).total);
  const double width = rest / real(lab.moe_layers * lab.experts * 2 * lab.hidden);
  model.expert_intermediate = std::max<std::int64_t>(1, std::llround(width / real(kWidthStep))) * kWidthStep;
  return model;
}

Machine machine_of(const Cluster& cluster, const EnvProfile* profile) {
  NodeSpec node;
  const bool a100 = cluster.hbm_gb < 100;
  const bool rack = cluster.name.find("NVL72") != std::string::npos;
  node.gpu = find_gpu(a100 ? "a100-80" : "gb200", hardware_directory());
  node.name = cluster.name;
  node.gpus = static_cast<std::int32_t>(cluster.gpus_per_node);
  node.domain_gpus = rack ? static_cast<std::int32_t>(std::min(kRackGpus, cluster.gpus())) : node.gpus;
  node.scale_up = ScaleUp::switched;
  node.nic.link.gb_per_s = cluster.nic_gbps / 8;
  node.nics = static_cast<std::int32_t>(cluster.nics_per_node);
  MachineOptions options;
  options.hosts = cluster.nodes;
  Machine machine = make_machine(node, options);
  if (profile != nullptr) {
    machine.scale_up.gb_per_s = node.gpu.scale_up.gb_per_s * profile->efficiency;
    machine.network.gb_per_s = machine.spine.gb_per_s = node.network_gb_per_s_per_gpu() * profile->efficiency;
  }
  return machine;
}

/// The lab's ranks: its ep ranks share one microbatch, which to us are data-parallel ranks with a part each.
StepTimeOptions options_of(const Model& model, const Plan& plan) {
  StepTimeOptions o;
  if (plan.microbatch_sequences % plan.ep != 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("plan \"{}\": ep {} does not divide the {} sequences of a microbatch", plan.name,
                            plan.ep, plan.microbatch_sequences));
  }
  o.layout.tp = plan.tp;
  o.layout.pp = plan.pp;
  o.layout.ep = plan.ep;
  o.layout.dp = plan.dp * plan.ep;
  o.layout.etp = plan.tp;
  o.layout.stage_layers = plan.stage_layers;
  o.training.micro_batch = plan.microbatch_sequences / plan.ep;
  o.training.microbatches = plan.microbatches;
  o.training.sequence = model.sequence;
  return o;
}

struct OurRun {
  Run lab;
  std::string reason;  ///< Why it cannot be; empty where it can
  double step_ms = 0, compute_ms = 0, dp_ms = 0, pipeline_ms = 0, ep_ms = 0, tp_ms = 0, bubble_ms = 0,
         optimizer_ms = 0;
  double tokens_per_s = 0;
  double memory_gib = 0, margin_gib = 0;
  double experts_per_gpu = 0;
  double ep_gib = 0, tp_gib = 0, dp_gib = 0, pipeline_gib = 0;  ///< What one GPU sends in a step
  std::int64_t world = 0, gpus = 0;
  std::string ep_tier;
  [[nodiscard]] bool feasible() const { return reason.empty(); }
};

/// Adds `share` of a step and of its memory.
void add(const StepTime& time, const MemoryPlan& memory, double share, OurRun& run) {
  const auto ms = [&](const char* part) { return share * time.exposed_us(part) * 1e-3; };
  run.dp_ms += ms("gradient_sync");
  run.pipeline_ms += ms("pipeline_transfer");
  run.ep_ms += ms("dispatch") + ms("combine");
  run.tp_ms += ms("tensor_parallel");
  run.bubble_ms += ms("bubble");
  run.optimizer_ms += ms("optimizer");
  run.step_ms += share * time.step_us * 1e-3;
  run.memory_gib += share * memory.worst_stage().total() / kGiB;
  const auto gib = [&](const char* name) {
    double bytes = 0;
    for (const TimePart& part : time.parts)
      if (part.name == name) bytes += part.bytes;
    return share * bytes / kGiB;
  };
  run.ep_gib += gib("dispatch") + gib("combine");
  run.tp_gib += gib("tensor_parallel");
  run.dp_gib += gib("gradient_sync");
  run.pipeline_gib += gib("pipeline_transfer");
  for (const TimePart& part : time.parts)
    if (part.name == "dispatch") run.ep_tier = part.tier;
}

OurRun our_run(const Target& target, Role role, const Settings& settings) {
  OurRun run;
  run.lab = lab::run(target, role, settings);
  const Spec& spec = find_spec(run.lab.spec);
  Plan plan = plan_of(target, role);
  Cluster cluster = spec.cluster;
  if (target.kind == Kind::vllm) {
    cluster = vllm_cluster(run.lab.fabric);
    plan.dp = run.lab.evaluation.dp;
    plan.pp = run.lab.evaluation.pp;
    if (run.lab.fabric == "nvl72") plan.microbatches = 8;
  }
  const Machine machine = machine_of(cluster, run.lab.profile);
  run.gpus = machine.gpus();
  try {
    const ModelSpec model = model_of(spec.model);
    StepTimeOptions o = options_of(spec.model, plan);
    run.world = o.layout.world();
    run.experts_per_gpu = real(model.experts) / real(plan.ep);
    MemoryOptions memory;
    memory.layout = o.layout;
    memory.capacity_bytes = machine.node.gpu.memory_bytes;
    // The lab's fractions are the share of activations that is kept: so much of a step without recomputation, and the
    // rest of one that keeps only the inputs of layers.
    const double layers = real(spec.model.layers);
    const double moe = real(spec.model.moe_layers);
    const double kept =
        (plan.dense_checkpoint_fraction * (layers - moe) + plan.moe_checkpoint_fraction * moe) / layers;
    for (const auto& [recompute, share] :
         {std::pair<Recompute, double>{Recompute::none, kept}, {Recompute::full, 1 - kept}}) {
      if (share <= 0) continue;
      o.training.recompute = recompute;
      memory.training = o.training;
      add(step_time(model, machine, o), plan_memory(model, memory), share, run);
    }
    run.compute_ms =
        run.step_ms - run.dp_ms - run.pipeline_ms - run.ep_ms - run.tp_ms - run.bubble_ms - run.optimizer_ms;
    run.margin_gib = real(machine.node.gpu.memory_bytes) / kGiB - run.memory_gib;
    run.tokens_per_s = real(spec.model.sequence * plan.microbatch_sequences * plan.microbatches * plan.dp) /
                       (run.step_ms * 1e-3);
  } catch (const Error& error) {
    if (error.code() != Errc::invalid_argument) throw;
    run.reason = error.what();
  }
  return run;
}

const std::vector<Column>& columns() {
  static const std::vector<Column> all = {{"target", "target"},
                                          {"role", "role"},
                                          {"spec", "spec", Unit::none, true},
                                          {"plan_name", "plan", Unit::none, true},
                                          {"world_size", "GPUs"},
                                          {"world_size_matches", "matches", Unit::none, true},
                                          {"dp", "dp"},
                                          {"pp", "pp"},
                                          {"tp", "tp"},
                                          {"ep", "ep"},
                                          {"compute_ms", "compute ms"},
                                          {"bubble_ms", "bubble ms"},
                                          {"tp_time_ms", "tp ms"},
                                          {"ep_time_ms", "ep ms"},
                                          {"pipeline_time_ms", "pipeline ms"},
                                          {"dp_time_ms", "dp ms"},
                                          {"optimizer_ms", "optimizer ms", Unit::none, true},
                                          {"estimated_step_ms", "step ms"},
                                          {"lab_step_ms", "lab ms"},
                                          {"throughput_tokens_per_s", "tokens/s"},
                                          {"lab_throughput_tokens_per_s", "lab tokens/s", Unit::none, true},
                                          {"total_memory_gib", "memory GiB"},
                                          {"memory_margin_gib", "margin GiB"},
                                          {"lab_total_memory_gib", "lab memory GiB", Unit::none, true},
                                          {"experts_per_gpu", "experts/GPU", Unit::none, true},
                                          {"ep_gib", "ep GiB", Unit::none, true},
                                          {"tp_gib", "tp GiB", Unit::none, true},
                                          {"dp_gib", "dp GiB", Unit::none, true},
                                          {"pipeline_gib", "pipeline GiB", Unit::none, true},
                                          {"fabric", "fabric", Unit::none, true},
                                          {"feasible", "possible", Unit::none, true},
                                          {"reason", "reason", Unit::none, true}};
  return all;
}

std::vector<RecordValue> row_of(const OurRun& run) {
  const Evaluation& e = run.lab.evaluation;
  const auto number = [&](double value) { return run.feasible() ? RecordValue{value} : RecordValue{}; };
  return {full_name(*run.lab.target),
          std::string(role_name(run.lab.role)),
          run.lab.spec,
          e.plan_name,
          e.world_size,
          e.world_size == run.gpus,
          e.dp,
          e.pp,
          e.tp,
          e.ep,
          number(run.compute_ms),
          number(run.bubble_ms),
          number(run.tp_ms),
          number(run.ep_ms),
          number(run.pipeline_ms),
          number(run.dp_ms),
          number(run.optimizer_ms),
          number(run.step_ms),
          e.step_ms,
          number(run.tokens_per_s),
          e.tokens_per_s,
          number(run.memory_gib),
          number(run.margin_gib),
          e.total_memory_gb,
          number(run.experts_per_gpu),
          number(run.ep_gib),
          number(run.tp_gib),
          number(run.dp_gib),
          number(run.pipeline_gib),
          run.lab.fabric.empty() ? RecordValue{} : RecordValue{run.lab.fabric},
          run.feasible(),
          run.feasible() ? RecordValue{} : RecordValue{run.reason}};
}

/// What people see of a half beside its times; programs find it in the runs.
std::vector<Column> needs_columns() {
  return {{"target", "target"}, {"role", "role"}, {"spec", "spec"}, {"experts", "experts/GPU"},
          {"ep", "ep GiB"},     {"tier", "over"}, {"tp", "tp GiB"}, {"pipeline", "pipeline GiB"},
          {"dp", "dp GiB"}};
}

std::vector<RecordValue> needs_row(const OurRun& run) {
  return {full_name(*run.lab.target),
          std::string(role_name(run.lab.role)),
          run.lab.spec,
          run.experts_per_gpu,
          run.ep_gib,
          run.ep_tier.empty() ? RecordValue{} : RecordValue{run.ep_tier},
          run.tp_gib,
          run.pipeline_gib,
          run.dp_gib};
}

/// Every item of which the two say something else, with both numbers and the reason.
void explain(const OurRun& run, Table& table) {
  if (!run.feasible()) return;
  const Evaluation& e = run.lab.evaluation;
  const auto add = [&](const char* item, double ours, double lab, const std::string& why) {
    if (std::abs(ours - lab) <= 1e-3 * std::max(std::abs(ours), std::abs(lab))) return;
    table.rows.push_back({full_name(*run.lab.target), std::string(role_name(run.lab.role)), std::string(item),
                          ours, lab, lab > 0 ? RecordValue{ours / lab} : RecordValue{}, why});
  };
  add("compute_ms", run.compute_ms, e.compute_ms,
      "lab: layers * tokens of one microbatch * 2.5e-4 ms, whatever the hidden size, the GPU and the "
      "microbatches; ours: "
      "kernels of all microbatches of the busiest stage");
  add("bubble_ms", run.bubble_ms, 0, "lab: computes the bubble's share but leaves it out of the step");
  add("tp_time_ms", run.tp_ms, 0, "lab: no tensor-parallel collectives");
  add("ep_time_ms", run.ep_ms, e.ep_time_ms,
      fmt::format("lab: one exchange for all layers, times ep - 1, GiB over {}; ours: dispatch and combine "
                  "of every layer "
                  "with experts, forward and backward, once for each distinct place, over {}",
                  e.ep_cross_node ? "GB/s of all cards of a node" : "GB/s of both directions of NVLink",
                  run.ep_tier.empty() ? "nothing (ep 1)" : run.ep_tier));
  add("pipeline_time_ms", run.pipeline_ms, e.pipeline_time_ms,
      "lab: traffic of all boundaries in turn through the cards of one node; ours: that of one stage, over "
      "its GPUs' own "
      "links, both directions at once");
  add("dp_time_ms", run.dp_ms, e.dp_time_ms,
      "lab: all weights in bf16 divided by dp, so more ranks are faster, GiB over GB/s of a node; ours: fp32 "
      "gradients and "
      "bf16 weights of what one GPU holds, (n - 1) / n of them");
  add("optimizer_ms", run.optimizer_ms, 0, "lab: no optimizer step");
  add("step_ms", run.step_ms, e.step_ms, "the sum of the above");
  add("memory_gib", run.memory_gib, e.total_memory_gb,
      "lab: dense weights divided by ep, activations of one microbatch, 2.5 times the weights for the "
      "optimizer; ours: as "
      "plan memory, microbatches in flight, ZeRO 1");
  add("experts_per_gpu", run.experts_per_gpu, real(plan_of(*run.lab.target, run.lab.role).experts_per_gpu),
      "lab: as its plan says, though the ranks then do not hold all experts; ours: all of them over ep");
}

std::vector<Check> checks_of(const OurRun& b, const OurRun& o) {
  return {{"the layout is possible", b.feasible(), o.feasible()},
          {"memory fits", b.feasible() && b.margin_gib >= 0, o.feasible() && o.margin_gib >= 0},
          {"GPUs match the cluster", b.lab.evaluation.world_size == b.gpus,
           o.lab.evaluation.world_size == o.gpus},
          {"experts stay on NVLink", b.ep_tier == "scale_up", o.ep_tier == "scale_up"}};
}

void compare(const OurRun& b, const OurRun& o, const Settings& settings, Outcome& outcome, Table& pairs) {
  const std::string target = full_name(*b.lab.target);
  const std::string named = b.lab.fabric.empty() ? target : fmt::format("{} on {}", target, b.lab.fabric);
  std::vector<std::string>& notes = outcome.report.notes;
  for (const OurRun* run : {&b, &o}) {
    const std::string who = fmt::format("{} {}", named, role_name(run->lab.role));
    if (!run->feasible())
      notes.push_back(fmt::format("{}: not possible: {}", who, run->reason));
    else if (run->margin_gib < 0)
      notes.push_back(fmt::format("{}: needs {:.1f} GiB more than a GPU has", who, -run->margin_gib));
    if (run->feasible() && run->world != run->gpus)
      notes.push_back(fmt::format("{}: uses {} of {} GPUs", who, run->world, run->gpus));
    if (run->feasible() && run->bubble_ms > 0.2 * run->step_ms)
      notes.push_back(fmt::format("{}: the pipeline stands still for {:.1f} % of the step", who,
                                  100 * run->bubble_ms / run->step_ms));
  }
  const RecordValue none;
  if (b.feasible() && o.feasible()) {
    const double ratio = o.tokens_per_s / b.tokens_per_s;
    pairs.rows.push_back({target, b.lab.spec, b.step_ms, o.step_ms, b.step_ms / o.step_ms, ratio,
                          o.lab.evaluation.tokens_per_s / b.lab.evaluation.tokens_per_s});
    if (ratio < 1)
      notes.push_back(
          fmt::format("{}: \"optimized\" has {:.2f} times the throughput of the baseline", named, ratio));
  } else {
    pairs.rows.push_back({target, b.lab.spec, b.feasible() ? RecordValue{b.step_ms} : none,
                          o.feasible() ? RecordValue{o.step_ms} : none, none, none,
                          o.lab.evaluation.tokens_per_s / b.lab.evaluation.tokens_per_s});
  }
  if (settings.validate) outcome.ok = report_checks(*b.lab.target, checks_of(b, o), notes) && outcome.ok;
}

}  // namespace

Outcome run_targets_by_our_model(const std::vector<std::pair<const Target*, Settings>>& given) {
  const Chosen chosen = one_fabric_each(given);
  Outcome outcome;
  outcome.report.notes = ignored_settings(chosen);
  Table runs{"runs", columns(), {}};
  Table pairs{"comparisons",
              {{"target", "target"},
               {"spec", "spec"},
               {"baseline_step_ms", "baseline ms"},
               {"optimized_step_ms", "optimized ms"},
               {"speedup", "speedup"},
               {"throughput_ratio", "throughput"},
               {"lab_throughput_ratio", "by the lab"}},
              {}};
  Table differences{"differences",
                    {{"target", "target"},
                     {"role", "role"},
                     {"item", "item"},
                     {"ours", "ours"},
                     {"lab", "lab"},
                     {"ratio", "ratio"},
                     {"why", "why"}},
                    {}};
  Table needs{"needs", needs_columns(), {}, true};
  std::vector<std::string> names;
  for (const auto& [target, settings] : chosen) {
    const OurRun baseline = our_run(*target, Role::baseline, settings);
    const OurRun optimized = our_run(*target, Role::optimized, settings);
    names.push_back(full_name(*target));
    for (const OurRun* run : {&baseline, &optimized}) {
      runs.rows.push_back(row_of(*run));
      if (run->feasible()) needs.rows.push_back(needs_row(*run));
      explain(*run, differences);
    }
    compare(baseline, optimized, settings, outcome, pairs);
  }
  // The commands of the environment targets do not depend on a cost model.
  const Outcome lab = run_targets(chosen);
  outcome.report.head.set("cost_model", "ours").set("targets", names).set("valid", outcome.ok);
  outcome.report.summary = {fmt::format("our cost model; {}", fmt::join(names, ", "))};
  outcome.report.tables = {runs, pairs, differences, needs};
  for (const Table& table : lab.report.tables)
    if (table.key == "commands") outcome.report.tables.push_back(table);
  return outcome;
}

}  // namespace shunt::plan::lab

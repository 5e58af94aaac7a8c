#include <cstdlib>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/plan/lab.h>

namespace shunt::plan::lab {
namespace {

std::string fabric_of(const Settings& settings) {
  if (!settings.fabric.empty()) return settings.fabric;
  const char* environment = std::getenv("MPE_FABRIC");
  return environment != nullptr && *environment != '\0' ? environment : "nvlink";
}

const char* role_name(Role role) {
  return role == Role::baseline ? "baseline" : "optimized";
}

const std::vector<Column>& run_columns() {
  static const std::vector<Column> columns = [] {
    const auto program = [](const char* key) { return Column{key, key, Unit::none, true}; };
    std::vector<Column> all = {
        {"target", "target"}, {"role", "role"},      {"spec", "spec", Unit::none, true},
        program("plan_name"), program("world_size"), program("world_size_matches"),
        {"dp", "dp"},         {"pp", "pp"},          {"tp", "tp"},
        {"ep", "ep"}};
    for (const char* key : {"nodes_per_replica", "nodes_per_stage", "gpus_per_stage", "tp_ep_product",
                            "stage_layers", "dense_layers_per_stage", "moe_layers_per_stage"})
      all.push_back(program(key));
    for (const Column& column : std::vector<Column>{{"bubble_fraction", "bubble", Unit::share},
                                                    {"compute_ms", "compute ms"},
                                                    {"dp_time_ms", "dp ms"},
                                                    {"pipeline_time_ms", "pipeline ms"},
                                                    {"ep_time_ms", "ep ms"},
                                                    {"estimated_step_ms", "step ms"},
                                                    {"throughput_tokens_per_s", "tokens/s"}})
      all.push_back(column);
    for (const char* key : {"params_gb", "optimizer_gb", "grad_gb", "activation_gb"})
      all.push_back(program(key));
    all.push_back({"total_memory_gb", "memory GB"});
    all.push_back({"memory_margin_gb", "margin GB"});
    for (const char* key :
         {"ep_cross_node", "tokens_per_gpu", "tokens_per_expert", "capacity_limit_tokens", "load_balance_ok",
          "experts_per_gpu", "ep_payload_gb", "dp_payload_gb", "pipeline_payload_gb", "fabric",
          "collective_gb_per_s", "hotspots", "affinity", "notes"})
      all.push_back(program(key));
    return all;
  }();
  return columns;
}

const Plan& plan_of(const Target& target, Role role) {
  return role == Role::baseline ? target.baseline : target.optimized;
}

std::vector<RecordValue> run_row(const Run& run) {
  const Evaluation& e = run.evaluation;
  const RecordValue none;
  return {"moe_parallelism:" + run.target->name,
          std::string(role_name(run.role)),
          run.spec,
          e.plan_name,
          e.world_size,
          e.world_size_matches,
          e.dp,
          e.pp,
          e.tp,
          e.ep,
          e.nodes_per_replica,
          e.nodes_per_stage,
          e.gpus_per_stage,
          e.tp_ep_product,
          e.stage_layers,
          e.dense_layers_per_stage,
          e.moe_layers_per_stage,
          e.bubble_fraction,
          e.compute_ms,
          e.dp_time_ms,
          e.pipeline_time_ms,
          e.ep_time_ms,
          e.step_ms,
          e.tokens_per_s,
          e.params_gb,
          e.optimizer_gb,
          e.grad_gb,
          e.activation_gb,
          e.total_memory_gb,
          e.memory_margin_gb,
          e.ep_cross_node,
          e.tokens_per_gpu,
          e.tokens_per_expert,
          e.capacity_limit_tokens,
          e.load_balance_ok,
          plan_of(*run.target, run.role).experts_per_gpu,
          e.ep_payload_gb,
          e.dp_payload_gb,
          e.pipeline_payload_gb,
          run.profile == nullptr ? none : RecordValue{run.profile->fabric},
          run.profile == nullptr ? none : RecordValue{run.collective_gb_per_s},
          e.hotspots,
          e.affinity,
          e.notes};
}

/// The checks of --validate.
struct Check {
  const char* name;
  bool baseline;
  bool optimized;
};

std::vector<Check> checks_of(const Run& b, const Run& o) {
  return {{"memory fits", b.evaluation.memory_margin_gb >= 0, o.evaluation.memory_margin_gb >= 0},
          {"experts keep to their capacity", b.evaluation.load_balance_ok, o.evaluation.load_balance_ok},
          {"GPUs match the cluster", b.evaluation.world_size_matches, o.evaluation.world_size_matches},
          {"experts stay on NVLink", !b.evaluation.ep_cross_node, !o.evaluation.ep_cross_node}};
}

std::string exports_of(const EnvProfile& profile) {
  std::string text;
  for (const auto& [key, value] : profile.env)
    text += fmt::format("{}--env {}={}", text.empty() ? "" : " ", key, value);
  return text;
}

void add_commands(const Run& run, const Settings& settings, Table& table) {
  if (run.profile == nullptr) return;
  const std::string target = "moe_parallelism:" + run.target->name;
  const auto add = [&](const char* kind, const std::string& text) {
    table.rows.push_back({target, std::string(role_name(run.role)), std::string(kind), text});
  };
  add("launcher flags", exports_of(*run.profile));
  if (run.target->kind == Kind::alltoall) {
    add("validation",
        "mpirun -np N --hostfile hosts -x NCCL_DEBUG=INFO ./build/alltoall_perf -b 1M -e 8G -f 2 -g 1");
    add("validation", "mpirun -np N --hostfile hosts ./build/all_reduce_perf -d float -b 8 -e 32G -f 2");
    return;
  }
  const bool rack = run.profile->fabric == "nvl72";
  const std::int64_t gpus = settings.ngpu > 0 ? settings.ngpu : (rack ? 72 : 8);
  add("validation", rack ? "nvbandwidth -p multinode" : "nvbandwidth");
  for (const auto& [program, repeats] :
       {std::pair<const char*, int>{"all_reduce_perf", 100}, {"alltoall_perf", 200}})
    add("validation", fmt::format("mpirun -np {} --bind-to none {} -b 512 -e 64K -f 2 -g 1 -c 1 -n {}", gpus,
                                  program, repeats));
  add("smoke",
      fmt::format("vllm serve {} --tensor-parallel-size {} --pipeline-parallel-size {} --max-model-len {} "
                  "--max-num-seqs {} --gpu-memory-utilization {}",
                  settings.model, settings.tp, settings.pp > 0 ? settings.pp : (rack ? 3 : 1),
                  settings.max_len, settings.max_seqs > 0 ? settings.max_seqs : (rack ? 4096 : 1024),
                  settings.gpu_util));
}

void describe(const Run& b, const Run& o, const Settings& settings, Outcome& outcome, Table& comparison) {
  const Evaluation& be = b.evaluation;
  const Evaluation& oe = o.evaluation;
  const std::string target = "moe_parallelism:" + b.target->name;
  const double step = be.step_ms / oe.step_ms;
  const double throughput = oe.tokens_per_s / be.tokens_per_s;
  comparison.rows.push_back({target, b.spec, be.step_ms, oe.step_ms, step, throughput});
  auto& notes = outcome.report.notes;
  for (const Run* run : {&b, &o}) {
    for (const std::string& hotspot : run->evaluation.hotspots)
      notes.push_back(fmt::format("{} {}: {}", target, role_name(run->role), hotspot));
  }
  // A lab title does not make a plan faster; its own numbers say which one is.
  if (throughput < 1) {
    notes.push_back(
        fmt::format("{}: by the lab's own numbers \"optimized\" has {:.2f} times the throughput of the "
                    "baseline",
                    target, throughput));
  }
  if (!settings.validate) return;
  for (const Check& check : checks_of(b, o)) {
    const bool worse = check.baseline && !check.optimized;
    outcome.ok = outcome.ok && !worse;
    notes.push_back(fmt::format("{} validate: {}: baseline {}, optimized {}{}", target, check.name,
                                check.baseline ? "yes" : "no", check.optimized ? "yes" : "no",
                                worse ? ": FAILED" : ""));
  }
}

}  // namespace

Run run(const Target& target, Role role, const Settings& settings) {
  Run result;
  result.target = &target;
  result.role = role;
  result.spec = target.fixed_spec.empty() ? settings.spec : target.fixed_spec;
  const Spec& spec = find_spec(result.spec);
  Cluster cluster = spec.cluster;
  Plan plan = plan_of(target, role);
  double base = 0;
  if (target.kind == Kind::alltoall) {
    const std::string fabric = fabric_of(settings);
    result.profile = &alltoall_profile(role, fabric);
    plan.cross_node_ep = fabric != "nvlink";
    base = fabric == "nvlink" ? cluster.nvlink_gb_per_s() : cluster.nic_gb_per_s();
  } else if (target.kind == Kind::vllm) {
    const std::string fabric = fabric_of(settings);
    result.profile = &vllm_profile(role, fabric);
    cluster = vllm_cluster(fabric);
    if (fabric == "nvl72") {
      plan.dp = plan.pp = 3;
      plan.microbatches = 8;
      plan.cross_node_ep = true;
    }
    base = plan.cross_node_ep ? cluster.nic_gb_per_s() : cluster.nvlink_gb_per_s();
  }
  Evaluation& e = result.evaluation;
  e = evaluate(cluster, spec.model, plan);
  if (result.profile == nullptr) return result;
  result.collective_gb_per_s = base * result.profile->efficiency;
  const double collective =
      e.ep_payload_gb / result.collective_gb_per_s * 1000 + result.profile->handshake_ms;
  e.step_ms += collective - e.ep_time_ms;
  e.ep_time_ms = collective;
  const double tokens =
      static_cast<double>(spec.model.sequence * plan.microbatch_sequences * plan.microbatches * plan.dp);
  e.tokens_per_s = tokens / (e.step_ms / 1000);
  return result;
}

Outcome run_targets(const std::vector<std::pair<const Target*, Settings>>& chosen) {
  Outcome outcome;
  Table runs{"runs", run_columns(), {}};
  Table pairs{"comparisons",
              {{"target", "target"},
               {"spec", "spec"},
               {"baseline_step_ms", "baseline ms"},
               {"optimized_step_ms", "optimized ms"},
               {"speedup", "speedup"},
               {"throughput_ratio", "throughput"}},
              {}};
  Table commands{
      "commands", {{"target", "target"}, {"role", "role"}, {"kind", "kind"}, {"command", "command"}}, {}};
  std::vector<std::string> names;
  for (const auto& [target, settings] : chosen) {
    const Run baseline = run(*target, Role::baseline, settings);
    const Run optimized = run(*target, Role::optimized, settings);
    names.push_back("moe_parallelism:" + target->name);
    runs.rows.push_back(run_row(baseline));
    runs.rows.push_back(run_row(optimized));
    describe(baseline, optimized, settings, outcome, pairs);
    add_commands(baseline, settings, commands);
    add_commands(optimized, settings, commands);
  }
  outcome.report.head.set("cost_model", "lab").set("targets", names).set("valid", outcome.ok);
  outcome.report.summary = {fmt::format("lab cost model (GB are GiB); {}", fmt::join(names, ", "))};
  outcome.report.tables = {runs, pairs};
  if (!commands.rows.empty()) outcome.report.tables.push_back(commands);
  return outcome;
}

}  // namespace shunt::plan::lab

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

#include "lab_internal.h"

namespace shunt::plan::lab {
namespace {

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
          "collective_gb_per_s", "exchange_gb_per_s", "network_gb_per_s", "hotspots", "affinity", "notes"})
      all.push_back(program(key));
    return all;
  }();
  return columns;
}

std::vector<RecordValue> run_row(const Run& run) {
  const Evaluation& e = run.evaluation;
  const RecordValue none;
  return {full_name(*run.target),
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
          run.fabric.empty() ? none : RecordValue{run.fabric},
          run.profile == nullptr ? none : RecordValue{run.collective_gb_per_s},
          run.exchange_gb_per_s,
          run.network_gb_per_s,
          e.hotspots,
          e.affinity,
          e.notes};
}

/// What people see of a plan beside its times; programs find it in the runs.
std::vector<Column> needs_columns() {
  return {{"target", "target"},
          {"role", "role"},
          {"spec", "spec"},
          {"stage_layers", "stage layers"},
          {"experts", "experts/GPU"},
          {"tokens", "tokens/expert"},
          {"capacity", "capacity"},
          {"params", "weights GB"},
          {"optimizer", "optimizer GB"},
          {"grads", "gradients GB"},
          {"activations", "activ. GB"},
          {"ep", "ep GB"},
          {"ep_rate", "over GB/s"},
          {"dp", "dp GB"},
          {"pipeline", "pipeline GB"},
          {"nic_rate", "over GB/s"}};
}

std::vector<RecordValue> needs_row(const Run& run) {
  const Evaluation& e = run.evaluation;
  return {full_name(*run.target),
          std::string(role_name(run.role)),
          run.spec,
          fmt::format("{}", fmt::join(e.stage_layers, ",")),
          plan_of(*run.target, run.role).experts_per_gpu,
          e.tokens_per_expert,
          e.capacity_limit_tokens,
          e.params_gb,
          e.optimizer_gb,
          e.grad_gb,
          e.activation_gb,
          e.ep_payload_gb,
          run.exchange_gb_per_s,
          e.dp_payload_gb,
          e.pipeline_payload_gb,
          run.network_gb_per_s};
}

/// The checks of --validate.
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
  const std::string target = full_name(*run.target);
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
  const bool rack = run.fabric == "nvl72";
  const std::int64_t gpus = serving_gpus(settings, run.fabric);
  add("validation", rack ? "nvbandwidth -p multinode" : "nvbandwidth");
  for (const auto& [program, repeats] :
       {std::pair<const char*, int>{"all_reduce_perf", 100}, {"alltoall_perf", 200}})
    add("validation", fmt::format("mpirun -np {} --bind-to none {} -b 512 -e 64K -f 2 -g 1 -c 1 -n {}", gpus,
                                  program, repeats));
  add("smoke",
      fmt::format("vllm serve {} --tensor-parallel-size {} --pipeline-parallel-size {} --max-model-len {} "
                  "--max-num-seqs {} --gpu-memory-utilization {}",
                  settings.model, settings.tp, serving_stages(settings, run.fabric), settings.max_len,
                  settings.max_seqs > 0 ? settings.max_seqs : (rack ? 4096 : 1024), settings.gpu_util));
}

void describe(const Run& b, const Run& o, const Settings& settings, Outcome& outcome, Table& comparison) {
  const Evaluation& be = b.evaluation;
  const Evaluation& oe = o.evaluation;
  const std::string target = full_name(*b.target);
  const std::string named = b.fabric.empty() ? target : fmt::format("{} on {}", target, b.fabric);
  const double step = be.step_ms / oe.step_ms;
  const double throughput = oe.tokens_per_s / be.tokens_per_s;
  comparison.rows.push_back({target, b.spec, be.step_ms, oe.step_ms, step, throughput});
  auto& notes = outcome.report.notes;
  for (const Run* run : {&b, &o}) {
    for (const std::string& hotspot : run->evaluation.hotspots)
      notes.push_back(fmt::format("{} {}: {}", named, role_name(run->role), hotspot));
  }
  // A lab title does not make a plan faster; its own numbers say which one is.
  if (throughput < 1) {
    notes.push_back(
        fmt::format("{}: by the lab's own numbers \"optimized\" has {:.2f} times the throughput of the "
                    "baseline",
                    named, throughput));
  }
  if (settings.validate) outcome.ok = report_checks(*b.target, checks_of(b, o), notes) && outcome.ok;
}

void check_serving(const Settings& settings, const std::string& fabric) {
  const std::int64_t gpus = serving_gpus(settings, fabric);
  const std::int64_t stages = serving_stages(settings, fabric);
  if (settings.tp * stages <= gpus && gpus % (settings.tp * stages) == 0) return;
  throw Error(Errc::invalid_argument,
              fmt::format("moe_vllm_env on {}: tp {} * pp {} = {} GPUs do not divide the {} of --ngpu",
                          fabric, settings.tp, stages, settings.tp * stages, gpus));
}

}  // namespace

Run run(const Target& target, Role role, const Settings& settings) {
  Run result;
  result.target = &target;
  result.role = role;
  result.fabric = fabric_of(target, settings);
  result.spec = target.fixed_spec.empty() ? settings.spec : target.fixed_spec;
  if (target.kind == Kind::plan && result.fabric == "ethernet") result.spec = "gpt_oss_120b_gb200_ethernet";
  const Spec& spec = find_spec(result.spec);
  Cluster cluster = spec.cluster;
  Plan plan = plan_of(target, role);
  double base = 0;
  if (target.kind == Kind::alltoall) {
    result.profile = &alltoall_profile(role, result.fabric);
    plan.cross_node_ep = result.fabric != "nvlink";
    base = result.fabric == "nvlink" ? cluster.nvlink_gb_per_s() : cluster.nic_gb_per_s();
  } else if (target.kind == Kind::vllm) {
    check_serving(settings, result.fabric);
    result.profile = &vllm_profile(role, result.fabric);
    cluster = vllm_cluster(result.fabric);
    if (result.fabric == "nvl72") {
      plan.dp = plan.pp = 3;
      plan.microbatches = 8;
      plan.cross_node_ep = true;
    }
    base = plan.cross_node_ep ? cluster.nic_gb_per_s() : cluster.nvlink_gb_per_s();
  }
  Evaluation& e = result.evaluation;
  e = evaluate(cluster, spec.model, plan);
  result.network_gb_per_s = cluster.nic_gb_per_s();
  result.exchange_gb_per_s = plan.cross_node_ep ? cluster.nic_gb_per_s() : cluster.nvlink_gb_per_s();
  if (result.profile == nullptr) return result;
  result.collective_gb_per_s = result.exchange_gb_per_s = base * result.profile->efficiency;
  const double collective =
      e.ep_payload_gb / result.collective_gb_per_s * 1000 + result.profile->handshake_ms;
  e.step_ms += collective - e.ep_time_ms;
  e.ep_time_ms = collective;
  const double tokens =
      static_cast<double>(spec.model.sequence * plan.microbatch_sequences * plan.microbatches * plan.dp);
  e.tokens_per_s = tokens / (e.step_ms / 1000);
  return result;
}

Outcome run_targets(const std::vector<std::pair<const Target*, Settings>>& given) {
  const Chosen chosen = one_fabric_each(given);
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
  Table needs{"needs", needs_columns(), {}, true};
  std::vector<std::string> names;
  outcome.report.notes = ignored_settings(chosen);
  for (const auto& [target, settings] : chosen) {
    const Run baseline = run(*target, Role::baseline, settings);
    const Run optimized = run(*target, Role::optimized, settings);
    names.push_back(full_name(*target));
    for (const Run* half : {&baseline, &optimized}) {
      runs.rows.push_back(run_row(*half));
      needs.rows.push_back(needs_row(*half));
    }
    describe(baseline, optimized, settings, outcome, pairs);
    add_commands(baseline, settings, commands);
    add_commands(optimized, settings, commands);
  }
  outcome.report.head.set("cost_model", "lab").set("targets", names).set("valid", outcome.ok);
  outcome.report.summary = {fmt::format("lab cost model (GB are GiB); {}", fmt::join(names, ", "))};
  outcome.report.tables = {runs, pairs, needs};
  if (!commands.rows.empty()) outcome.report.tables.push_back(commands);
  return outcome;
}

}  // namespace shunt::plan::lab

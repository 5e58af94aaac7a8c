#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/cluster/parameters.h>
#include <shunt/plan/memory.h>

namespace shunt::plan {
namespace {

struct Part {
  const char* key;
  const char* title;
  double StageMemory::*bytes;
  bool always;
};

constexpr Part kParts[] = {
    {"weights_bytes", "weights", &StageMemory::weights, true},
    {"expert_weights_bytes", "routed experts", &StageMemory::expert_weights, false},
    {"redundant_experts_bytes", "redundant experts", &StageMemory::redundant_experts, false},
    {"gradients_bytes", "gradients", &StageMemory::gradients, false},
    {"optimizer_bytes", "optimizer", &StageMemory::optimizer, false},
    {"gathered_weights_bytes", "gathered weights", &StageMemory::gathered_weights, false},
    {"activations_bytes", "activations", &StageMemory::activations, true},
    {"router_bytes", "router", &StageMemory::router, false},
    {"logits_bytes", "logits", &StageMemory::logits, false},
    {"temporary_bytes", "temporary", &StageMemory::temporary, false},
    {"kv_cache_bytes", "KV cache", &StageMemory::kv_cache, false},
    {"states_bytes", "states", &StageMemory::states, false},
    {"communication_bytes", "communication", &StageMemory::communication, true},
    {"other_bytes", "other", &StageMemory::other, true},
    {"fragmentation_bytes", "fragmentation", &StageMemory::fragmentation, true},
};

std::int64_t whole(double bytes) {
  return static_cast<std::int64_t>(std::llround(bytes));
}

/// Ranks that hold one key and value head.
std::int64_t local_kv_copies(const ModelSpec& model, const Layout& layout) {
  const std::int64_t heads = model.attention.kv_heads;
  return heads > 0 && layout.tp > heads ? layout.tp / heads : 1;
}

template <class Names, class Value>
std::string name_of(const Names& names, Value value) {
  return names[static_cast<std::size_t>(value)];
}

void describe_training(const TrainingOptions& o, const MemoryPlan& plan, Report& report) {
  report.head.set("micro_batch", o.micro_batch)
      .set("microbatches", o.microbatches)
      .set("sequence", o.sequence)
      .set("zero", o.zero)
      .set("gradient_element_bytes", o.gradient_bytes)
      .set("optimizer", name_of(optimizer_names(), o.optimizer))
      .set("schedule", name_of(schedule_names(), o.schedule))
      .set("chunks", o.chunks)
      .set("recompute", name_of(recompute_names(), o.recompute))
      .set("sequence_parallel", o.sequence_parallel)
      .set("imbalance", o.imbalance)
      .set("mtp", o.mtp)
      .set("global_batch_sequences", o.micro_batch * o.microbatches * plan.layout.dp)
      .set("megatron_weights_optimizer_bytes", whole(plan.megatron.weights_optimizer_bytes))
      .set("megatron_activation_bytes", whole(plan.megatron.activation_bytes))
      .set("megatron_most_loaded_parameters", whole(plan.megatron.most_loaded_parameters));
  report.summary.push_back(
      fmt::format("training: {} microbatches of {} x {} tokens, schedule {}{}, ZeRO {}, {}, recompute {}, "
                  "global batch {} sequences",
                  o.microbatches, o.micro_batch, o.sequence, name_of(schedule_names(), o.schedule),
                  o.chunks > 1 ? fmt::format(" with {} chunks", o.chunks) : "", o.zero,
                  name_of(optimizer_names(), o.optimizer), name_of(recompute_names(), o.recompute),
                  o.micro_batch * o.microbatches * plan.layout.dp));
  report.notes.push_back(fmt::format(
      "Megatron-LM's own estimate for its most loaded GPU: {} of weights, gradients and optimizer, {} of "
      "activations "
      "(selective recomputation and sequence parallelism, experts counted as one dense MLP)",
      show_bytes(plan.megatron.weights_optimizer_bytes), show_bytes(plan.megatron.activation_bytes)));
}

void describe_serving(const ServingOptions& o, const MemoryPlan& plan, Report& report) {
  report.head.set("weights", name_of(weight_format_names(), o.weights))
      .set("expert_weights", name_of(weight_format_names(), o.expert_weights))
      .set("max_sequences", o.max_sequences)
      .set("max_length", o.max_length)
      .set("batch_tokens", o.batch_tokens)
      .set("utilization", o.utilization)
      .set("kv_element_bytes", o.kv_element_bytes)
      .set("kv_bytes_per_token", whole(plan.kv_bytes_per_token))
      .set("all_to_all", name_of(all_to_all_names(), o.all_to_all))
      .set("imbalance", o.imbalance)
      .set("mtp", o.mtp);
  report.summary.push_back(fmt::format(
      "serving: weights {}, experts {}, at most {} sequences of {} tokens on each of {} data-parallel "
      "ranks, {} tokens in a pass, KV cache {} bytes per token and GPU",
      name_of(weight_format_names(), o.weights), name_of(weight_format_names(), o.expert_weights),
      o.max_sequences, o.max_length, plan.layout.dp, o.batch_tokens,
      show_count(whole(plan.kv_bytes_per_token))));
}

void compare_with_capacity(const MemoryPlan& plan, const std::string& gpu, Report& report) {
  const double total = plan.worst_stage().total();
  const double budget = plan.budget();
  const bool given = plan.options.capacity_bytes > 0;
  if (!given) {
    for (const char* key : {"capacity_bytes", "budget_bytes", "margin_bytes", "fits"})
      report.head.set(key, RecordValue{});
    report.summary.push_back(
        fmt::format("stage {} needs most: {} on each GPU", plan.worst, show_bytes(total)));
    return;
  }
  report.head.set("capacity_bytes", plan.options.capacity_bytes)
      .set("budget_bytes", whole(budget))
      .set("margin_bytes", whole(budget - total))
      .set("fits", total <= budget);
  report.summary.push_back(
      fmt::format("stage {} needs most: {} of {}{}; {}", plan.worst, show_bytes(total), show_bytes(budget),
                  gpu.empty() ? "" : fmt::format(" of {}", gpu),
                  total <= budget ? fmt::format("it fits, {} to spare", show_bytes(budget - total))
                                  : fmt::format("it does not fit, {} too much", show_bytes(total - budget))));
  if (!plan.options.serving) return;
  report.head.set("kv_budget_bytes", whole(plan.kv_budget)).set("kv_sequences_that_fit", plan.kv_sequences);
  report.summary.push_back(fmt::format("the KV cache can have {}: {} sequences of {} tokens",
                                       show_bytes(plan.kv_budget), show_count(plan.kv_sequences),
                                       plan.options.inference.max_length));
}

Table part_table(const StageMemory& stage) {
  Table table{"parts",
              {{"part", "part"},
               {"bytes", fmt::format("stage {}", stage.stage), Unit::bytes},
               {"share", "share", Unit::share}},
              {}};
  for (const Part& part : kParts) {
    const double bytes = stage.*part.bytes;
    if (bytes == 0 && !part.always) continue;
    table.rows.push_back({std::string(part.title), whole(bytes), bytes / stage.total()});
  }
  table.rows.push_back({std::string("total"), whole(stage.total()), 1.0});
  return table;
}

Table stage_table(const MemoryPlan& plan) {
  Table table{
      "stages", {{"stage", "stage"}, {"layers", "layers"}, {"parameters", "parameters", Unit::count}}, {}};
  table.columns.push_back({"in_flight", "in flight", Unit::none, plan.options.serving});
  for (const Part& part : kParts) {
    bool shown = false;
    for (const StageMemory& stage : plan.stages) shown = shown || stage.*part.bytes >= 0.1 * 1073741824.0;
    table.columns.push_back({part.key, part.title, Unit::bytes, !shown});
  }
  table.columns.push_back({"total_bytes", "total", Unit::bytes});
  for (const StageMemory& stage : plan.stages) {
    std::vector<RecordValue> row = {stage.stage, stage.layers, whole(stage.parameters), stage.in_flight};
    for (const Part& part : kParts) row.emplace_back(whole(stage.*part.bytes));
    row.emplace_back(whole(stage.total()));
    table.rows.push_back(row);
  }
  return table;
}

}  // namespace

Report report_memory(const ModelSpec& model, const MemoryPlan& plan, const std::string& gpu) {
  const Layout& layout = plan.layout;
  const StageMemory& worst = plan.worst_stage();
  Report report("plan_memory");
  report.head.set("model", model.name)
      .set("mode", plan.options.serving ? "serving" : "training")
      .set("gpu", gpu.empty() ? RecordValue{} : RecordValue{gpu})
      .set("world", layout.world())
      .set("tp", layout.tp)
      .set("pp", layout.pp)
      .set("dp", layout.dp)
      .set("cp", layout.cp)
      .set("ep", layout.ep)
      .set("etp", layout.etp)
      .set("edp", layout.edp())
      .set("stage_layers", layout.stage_layers)
      .set("redundant_experts", layout.redundant_experts)
      .set("experts_per_gpu",
           model.experts == 0 ? std::int64_t{0} : (model.experts + layout.redundant_experts) / layout.ep);
  report.summary.push_back(fmt::format(
      "{}: tp {} x pp {} x dp {}{} = {} GPUs{}", model.name, layout.tp, layout.pp, layout.dp,
      layout.cp > 1 ? fmt::format(" x cp {}", layout.cp) : "", layout.world(),
      model.experts == 0
          ? ""
          : fmt::format("; experts ep {} x etp {}, {} on a GPU, {}", layout.ep, layout.etp,
                        (model.experts + layout.redundant_experts) / layout.ep,
                        layout.edp() == 1 ? "one copy" : fmt::format("{} copies (edp)", layout.edp()))));
  if (plan.options.serving) {
    describe_serving(plan.options.inference, plan, report);
  } else {
    describe_training(plan.options.training, plan, report);
  }
  compare_with_capacity(plan, gpu, report);
  report.head.set("worst_stage", worst.stage).set("parameters_per_gpu", whole(worst.parameters));
  for (const Part& part : kParts) report.head.set(part.key, whole(worst.*part.bytes));
  report.head.set("total_bytes", whole(worst.total()));
  report.tables.push_back(part_table(worst));
  report.tables.push_back(stage_table(plan));
  report.csv_table = 1;
  for (const std::string& note : model.notes) report.notes.push_back(note);
  if (local_kv_copies(model, layout) > 1) {
    report.notes.push_back(
        fmt::format("{} ranks of a tensor-parallel group hold the same key and value heads",
                    local_kv_copies(model, layout)));
  }
  return report;
}

}  // namespace shunt::plan

#include <shunt/plan/breakdown.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/plan/schedule.h>

#include "kernels.h"

namespace shunt::plan {
namespace {

constexpr double kSmallMarginBytes = 8.0 * (1 << 30);
constexpr double kLargeBubble = 0.1;
constexpr double kLargeExchange = 0.25;
constexpr double kLargeGradientSync = 0.1;
constexpr double kLargeTensor = 0.2;
constexpr double kUneven = 1.2;
constexpr double kUnevenStages = 1.1;
constexpr double kFewRows = 128;  // A tile of a matrix product

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

double real(std::int64_t value) {
  return static_cast<double>(value);
}

std::int64_t ceil_of(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Memory of what was timed: the same layout, batch and exchange kernels.
MemoryOptions memory_options(const ModelSpec& model, const Machine& machine, const PlanOptions& o,
                             ExchangeKernels kernels) {
  MemoryOptions memory;
  const StepTimeOptions& s = o.step;
  memory.layout = s.layout;
  memory.serving = s.phase != Phase::training;
  memory.training = s.training;
  memory.capacity_bytes = o.capacity_bytes > 0 ? o.capacity_bytes : machine.node.gpu.memory_bytes;
  const std::int64_t slots = model.experts + s.layout.redundant_experts;
  const auto reserve = [&](std::int64_t tokens) {
    if (kernels != ExchangeKernels::normal && kernels != ExchangeKernels::nvlink) return;
    memory.library_bytes += kernel_buffer_bytes(kernels, model, s.layout.ep, slots, tokens,
                                                s.exchange_sms > 0 ? s.exchange_sms : kNormalSms,
                                                s.dispatch_payload, s.combine_payload);
  };
  if (!memory.serving) {
    reserve(ceil_of(s.training.micro_batch * s.training.sequence, s.layout.cp * s.layout.tp));
    return memory;
  }
  ServingOptions& serving = memory.inference;
  serving.weights = s.weights;
  serving.expert_weights = s.expert_weights;
  serving.kv_element_bytes = s.kv_element_bytes;
  serving.imbalance = s.imbalance;
  serving.utilization = o.utilization;
  if (s.phase == Phase::decode) {
    serving.max_sequences = s.sequences;
    serving.max_length = s.context;
    serving.batch_tokens = s.sequences * (1 + s.drafts);
  } else {
    serving.max_sequences =
        std::max<std::int64_t>(1, s.batch_tokens / std::max<std::int64_t>(1, s.prompt - s.cached));
    serving.max_length = s.prompt;
    serving.batch_tokens = s.batch_tokens;
  }
  const std::int64_t tokens = std::max<std::int64_t>(1, ceil_of(serving.batch_tokens, s.layout.tp));
  if (kernels == ExchangeKernels::low_latency) {
    serving.all_to_all = AllToAll::deepep_low_latency;
    serving.dispatch_tokens = tokens;
  }
  reserve(tokens);
  return memory;
}

double share_of(const StepTime& time, const std::string& name) {
  return time.step_us > 0 ? time.exposed_us(name) / time.step_us : 0;
}

std::string percent(double share) {
  return fmt::format("{:.1f} %", 100 * share);
}

const ParallelGroup& group_named(const std::vector<ParallelGroup>& groups, const char* name) {
  return *std::find_if(groups.begin(), groups.end(),
                       [&](const ParallelGroup& group) { return group.name == name; });
}

void judge_memory(const PlanResult& r, Findings& f) {
  const double margin = r.margin_bytes();
  const StageMemory& worst = r.memory.worst_stage();
  if (!r.fits) {
    f.hot_spots.push_back(fmt::format("stage {} needs {} of {}: {} too much", worst.stage,
                                      show_bytes(worst.total()), show_bytes(r.memory.budget()),
                                      show_bytes(-margin)));
    const double kept = worst.activations + worst.router;
    const double states = worst.gradients + worst.optimizer + worst.weights + worst.expert_weights;
    const TrainingOptions& t = r.time.options.training;
    if (r.time.options.phase != Phase::training) {
      f.advice.emplace_back(worst.kv_cache > worst.weights + worst.expert_weights
                                ? "the KV cache is the largest part: fewer sequences, fp8 keys and values, "
                                  "or more data-parallel ranks"
                                : "weights are the largest part: larger ep or tp, or a smaller format");
    } else if (kept > states && t.recompute != Recompute::full) {
      f.advice.push_back(fmt::format("activations take {}: --recompute {}, or smaller microbatches",
                                     show_bytes(kept),
                                     t.recompute == Recompute::none ? "selective" : "full"));
    } else if (t.zero < 1 || (t.zero < 2 && r.time.options.layout.dp > 1)) {
      f.advice.push_back(fmt::format("weights and states take {}: --zero {}, or more ep or pp",
                                     show_bytes(states), t.zero + 1));
    } else {
      f.advice.push_back(fmt::format("weights and states take {}: more ep, pp or tp", show_bytes(states)));
    }
  } else if (margin < kSmallMarginBytes) {
    f.hot_spots.push_back(
        fmt::format("only {} of memory are left on stage {}", show_bytes(margin), worst.stage));
  }
}

void judge_pipeline(const PlanResult& r, Findings& f) {
  const StepTime& time = r.time;
  const double bubble = time.step_us > 0 ? time.bubble_us / time.step_us : 0;
  double most = 0;
  double sum = 0;
  for (const StageTime& stage : time.stages) {
    most = std::max(most, stage.forward_us + stage.backward_us);
    sum += stage.forward_us + stage.backward_us;
  }
  const double mean = sum / real(static_cast<std::int64_t>(time.stages.size()));
  if (time.stages.size() > 1 && most > kUnevenStages * mean) {
    f.hot_spots.push_back(fmt::format("the slowest stage takes {:.2f} times the mean of all", most / mean));
    f.advice.emplace_back(
        "--stage-layers: fewer layers on the slowest stage (often the last, with the output head)");
  }
  if (bubble <= kLargeBubble) return;
  f.hot_spots.push_back(fmt::format("the pipeline idles for {} of the step", percent(bubble)));
  const Layout& l = time.options.layout;
  const TrainingOptions& t = time.options.training;
  ScheduleOptions o;
  o.stages = l.pp;
  o.microbatches = t.microbatches;
  const StageTime& stage = time.stages.front();
  o.times = {stage.forward_us, stage.backward_us - stage.weight_gradient_us, stage.weight_gradient_us, 0};
  std::string best;
  double least = time.bubble_us;
  for (const Pipeline pipeline : {Pipeline::interleaved, Pipeline::zb_h1, Pipeline::dualpipe}) {
    try {
      const ScheduleCost cost = schedule_cost(pipeline, o);
      if (cost.bubble >= least) continue;
      least = cost.bubble;
      best = pipeline_names()[static_cast<std::size_t>(pipeline)];
    } catch (const Error&) {
      continue;  // This one cannot run here.
    }
  }
  if (best == pipeline_names()[static_cast<std::size_t>(Pipeline::interleaved)]) best += " --chunks 2";
  if (!best.empty())
    f.advice.push_back(fmt::format("--schedule {}: a bubble of some {:.3g} ms instead of {:.3g}", best,
                                   least * 1e-3, time.bubble_us * 1e-3));
  f.advice.push_back(
      fmt::format("more than the {} microbatches of a step, or fewer stages than {}", t.microbatches, l.pp));
}

void judge_exchange(const ModelSpec& model, const Machine& machine, const PlanResult& r,
                    const std::vector<ParallelGroup>& groups, Findings& f) {
  const StepTimeOptions& o = r.time.options;
  if (model.experts == 0 || o.layout.ep == 1) return;
  const double exchange = share_of(r.time, "dispatch") + share_of(r.time, "combine");
  const ParallelGroup& ep = group_named(groups, "ep");
  if (ep.place.domains > 1)
    f.hot_spots.push_back(fmt::format("ep {} spans {} scale-up domains: tokens cross the network",
                                      o.layout.ep, ep.place.domains));
  if (exchange > kLargeExchange) {
    f.hot_spots.push_back(fmt::format("dispatch and combine are {} of the step", percent(exchange)));
    if (!o.two_batches)
      f.advice.emplace_back("--two-batches: one half's exchange behind the other half's computation");
    if (o.dispatch_payload == "bfloat16")
      f.advice.emplace_back("--dispatch-payload fp8_block128: half of the bytes");
    if (ep.place.domains > 1 && machine.domain() > 1)
      f.advice.push_back(
          fmt::format("ep of at most {} stays on the scale-up fabric, if memory allows", machine.domain()));
  }
  if (r.time.imbalance > kUneven) {
    f.hot_spots.push_back(
        fmt::format("the busiest expert rank has {:.2f} times the mean load", r.time.imbalance));
    f.advice.emplace_back("redundant experts (shunt plan grouping) even loads out in serving");
  }
  const double tokens =
      o.phase == Phase::training  ? real(o.training.micro_batch * o.training.sequence) / real(o.layout.cp)
      : o.phase == Phase::prefill ? real(o.batch_tokens)
                                  : std::ceil(real(o.sequences) / real(o.layout.pp)) * real(1 + o.drafts);
  // Tokens of all tensor-parallel groups that share the experts of one ep group, over the experts.
  const double rows = tokens * real(o.layout.ep * o.layout.etp) / real(o.layout.tp) * real(model.top_k) /
                      real(model.experts + o.layout.redundant_experts);
  if (rows < kFewRows) {
    f.hot_spots.push_back(
        fmt::format("an expert gets {:.1f} rows of a pass, fewer than a tile of {:.0f}: reading its weights "
                    "is the cost",
                    rows, kFewRows));
    f.advice.emplace_back("larger batches, or fewer experts on each GPU (larger ep)");
  }
}

}  // namespace

PlanResult evaluate_plan(const ModelSpec& model, const Machine& machine, const PlanOptions& options,
                         const CostModel* fits) {
  PlanResult r;
  r.options = options;
  StepTimeOptions& step = r.options.step;
  step.layout = resolve(step.layout, model);
  const Layout& l = step.layout;
  if (l.world() > machine.gpus() || (l.world() < machine.gpus() && !options.idle_gpus))
    refuse(fmt::format("tp {} * cp {} * dp {} * pp {} = {} GPUs, but {} hosts {} have {}", l.tp, l.cp, l.dp,
                       l.pp, l.world(), machine.hosts, machine.node.name, machine.gpus()));
  if (options.global_batch != 0) {
    if (step.phase != Phase::training) refuse("a global batch is for training");
    const std::int64_t each = l.dp * step.training.micro_batch;
    if (options.global_batch < 1 || each < 1 || options.global_batch % each != 0)
      refuse(fmt::format("global batch {}: dp {} * micro batch {} does not divide it", options.global_batch,
                         l.dp, step.training.micro_batch));
    step.training.microbatches = options.global_batch / each;
  }
  r.time = step_time(model, machine, step, fits);
  r.options.step = r.time.options;
  MemoryOptions memory = memory_options(model, machine, r.options, r.time.kernels);
  memory.training.imbalance = memory.inference.imbalance =
      r.time.imbalance;  // As loads or a power law make it
  r.memory = plan_memory(model, memory);
  r.fits = r.margin_bytes() >= 0;
  return r;
}

std::vector<ParallelGroup> parallel_groups(const Machine& machine, const Layout& l) {
  const std::int64_t stage = l.tp * l.cp * l.dp;
  std::vector<ParallelGroup> groups = {{"tp", l.tp, 1, {}},
                                       {"cp", l.cp, l.tp, {}},
                                       {"dp", l.dp, l.tp * l.cp, {}},
                                       {"pp", l.pp, stage, {}},
                                       {"etp", l.etp, 1, {}},
                                       {"ep", l.ep, l.etp, {}},
                                       {"edp", l.edp(), l.etp * l.ep, {}}};
  for (ParallelGroup& group : groups) group.place = place_group(machine, group.size, group.stride);
  return groups;
}

RankIndices rank_indices(const Layout& l, std::int64_t rank) {
  if (rank < 0 || rank >= l.world())
    refuse(fmt::format("rank {}: the layout has ranks 0 to {}", rank, l.world() - 1));
  const std::int64_t stage = l.tp * l.cp * l.dp;
  const std::int64_t inside = rank % stage;
  return {inside % l.tp,  inside / l.tp % l.cp,  inside / (l.tp * l.cp), rank / stage,
          inside % l.etp, inside / l.etp % l.ep, inside / (l.etp * l.ep)};
}

Findings judge(const ModelSpec& model, const Machine& machine, const PlanResult& r) {
  Findings f;
  const std::vector<ParallelGroup> groups = parallel_groups(machine, r.time.options.layout);
  judge_memory(r, f);
  if (r.time.options.phase == Phase::training) judge_pipeline(r, f);
  const ParallelGroup& tp = group_named(groups, "tp");
  if (tp.place.domains > 1) {
    f.hot_spots.push_back(
        fmt::format("tp {} spans {} scale-up domains: its collectives cross the network on every layer",
                    tp.size, tp.place.domains));
    f.advice.push_back(fmt::format("tp of at most {}, and pp across hosts", machine.domain()));
  }
  const double tensor = share_of(r.time, "tensor_parallel");
  if (tp.place.domains == 1 && tensor > kLargeTensor) {
    f.hot_spots.push_back(fmt::format("collectives of tp {} are {} of the step", tp.size, percent(tensor)));
    f.advice.emplace_back("smaller tp, with ep or pp instead");
  }
  const double gradients = share_of(r.time, "gradient_sync") + share_of(r.time, "weight_gather");
  if (gradients > kLargeGradientSync) {
    f.hot_spots.push_back(
        fmt::format("gradients and weights on the network are {} of the step", percent(gradients)));
    f.advice.emplace_back("more microbatches for each step, or --overlap-gradients where the framework can");
  }
  judge_exchange(model, machine, r, groups, f);
  return f;
}

const std::vector<PlanMetric>& plan_metrics() {
  static const std::vector<PlanMetric> list = {
      {"gpus", "GPUs", Unit::none, true},
      {"step_us", "step us", Unit::none, true, true},
      {"tokens_per_s", "tokens/s", Unit::none, false},
      {"tokens_per_s_per_gpu", "tokens/s/GPU", Unit::none, false},
      {"model_flops_utilization", "flops utilization", Unit::share, false},
      {"ttft_ms", "first token ms", Unit::none, true},
      {"tpot_ms", "between tokens ms", Unit::none, true},
      {"bubble_us", "bubble us", Unit::none, true, true},
      {"exposed_communication_us", "exposed communication us", Unit::none, true, true},
      {"weights_bytes", "weights", Unit::bytes, true},
      {"states_bytes", "gradients and optimizer", Unit::bytes, true},
      {"activations_bytes", "activations", Unit::bytes, true},
      {"kv_cache_bytes", "KV cache", Unit::bytes, true},
      {"total_bytes", "memory of a GPU", Unit::bytes, true},
      {"margin_bytes", "memory left", Unit::bytes, false}};
  return list;
}

std::vector<double> metric_values(const PlanResult& r) {
  const double none = std::numeric_limits<double>::quiet_NaN();
  const StepTime& t = r.time;
  const StageMemory& m = r.memory.worst_stage();
  const Phase phase = t.options.phase;
  const bool training = phase == Phase::training;
  return {real(t.options.layout.world()),
          t.step_us,
          t.tokens_per_s,
          t.tokens_per_s_per_gpu,
          phase == Phase::decode ? none : t.model_flops_utilization,
          phase == Phase::prefill ? t.ttft_ms : none,
          phase == Phase::decode ? t.tpot_ms : none,
          training ? t.bubble_us : none,
          t.exposed_communication_us,
          m.weights + m.expert_weights + m.redundant_experts + m.gathered_weights,
          training ? m.gradients + m.optimizer : none,
          m.activations + m.router + m.logits + m.temporary,
          training ? none : m.kv_cache + m.states,
          m.total(),
          r.margin_bytes()};
}

std::string layout_name(const Layout& l) {
  std::string text = fmt::format("tp {} pp {} dp {} ep {}", l.tp, l.pp, l.dp, l.ep);
  if (l.etp > 1) text += fmt::format(" etp {}", l.etp);
  if (l.cp > 1) text += fmt::format(" cp {}", l.cp);
  return text;
}

namespace {

/// The metric called `key`, which is one of plan_metrics().
double value_of(const ComparedPlan& plan, const char* key) {
  std::size_t i = 0;
  while (plan_metrics().at(i).key != key) ++i;
  return plan.values[i];
}

/// Tokens of one step, from its time and its rate; not finite where a plan has one of them only.
double tokens_of_step(const ComparedPlan& plan) {
  return value_of(plan, "step_us") * 1e-6 * value_of(plan, "tokens_per_s");
}

}  // namespace

Report report_compare(const ComparedPlan& a, const ComparedPlan& b) {
  Report report("plan_compare");
  report.head.set("a", a.name).set("b", b.name);
  report.summary = {fmt::format("A: {}", a.name), fmt::format("B: {}", b.name)};
  for (const char* plan : {"a", "b"}) {
    const std::vector<double>& values = plan[0] == 'a' ? a.values : b.values;
    for (std::size_t i = 0; i < plan_metrics().size(); ++i)
      if (std::isfinite(values[i]))
        report.head.set(fmt::format("{}_{}", plan, plan_metrics()[i].key), values[i]);
  }
  Table table{"metrics",
              {{"metric", "metric"},
               {"a", "A"},
               {"b", "B"},
               {"b_over_a", "B / A"},
               {"better", "better"},
               {"a_value", "A", Unit::none, true},
               {"b_value", "B", Unit::none, true}},
              {}};
  const auto show = [](double value, Unit unit) {
    if (unit == Unit::bytes) return show_bytes(value);
    if (unit == Unit::share) return percent(value);
    return fmt::format("{:.6g}", value);
  };
  const double step_a = tokens_of_step(a);
  const double step_b = tokens_of_step(b);
  const bool other_batch = std::isfinite(step_a) && std::isfinite(step_b) &&
                           std::abs(step_a - step_b) > 1e-3 * std::max(step_a, step_b);
  if (other_batch)
    report.notes.push_back(fmt::format(
        "a step of A has {:.6g} tokens, one of B {:.6g}: their times are of different work, tokens/s are not",
        step_a, step_b));
  for (std::size_t i = 0; i < plan_metrics().size(); ++i) {
    const PlanMetric& metric = plan_metrics()[i];
    const double x = a.values[i];
    const double y = b.values[i];
    if (!std::isfinite(x) || !std::isfinite(y)) continue;
    RecordValue ratio;
    if (x != 0 && (x > 0) == (y > 0)) ratio = std::round(y / x * 1e4) / 1e4;
    std::string better = "same";
    if (x != y) better = (x < y) == metric.less_is_better ? "A" : "B";
    if ((metric.key == "gpus" || (other_batch && metric.is_of_step)) && x != y) better = "-";
    table.rows.push_back({metric.title, show(x, metric.unit), show(y, metric.unit), ratio, better, x, y});
  }
  for (const char* plan : {"A", "B"}) {
    const double margin = value_of(plan[0] == 'A' ? a : b, "margin_bytes");
    if (margin < 0)
      report.summary.push_back(fmt::format("{} does not fit: {} too much", plan, show_bytes(-margin)));
  }
  if (table.rows.empty()) refuse(fmt::format("{} and {} have no number in common", a.name, b.name));
  report.tables.push_back(table);
  return report;
}

}  // namespace shunt::plan

#include <shunt/plan/step_time.h>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/cluster/parameters.h>
#include <shunt/cluster/volume.h>

#include "layer_time.h"
#include "stage.h"
#include "step_options.h"

namespace shunt::plan {

using detail::real;
using detail::refuse;

namespace {

/// Computation and communication of one microbatch, with what overlaps taken off.
struct Summed {
  double forward = 0, backward = 0, weight_gradient = 0;
  double exposed_share = 1;  ///< Of dispatch and combine
};

bool is_exchange(const Work& work) {
  return work.name == "dispatch" || work.name == "combine";
}

Summed sum_of(const Works& works, const StepTimeOptions& o, double busy_share) {
  double compute_forward = 0, compute_backward = 0, exchange_forward = 0, exchange_backward = 0;
  Summed s;
  for (const Work& work : works.all()) {
    if (is_exchange(work)) {
      exchange_forward += work.forward_us;
      exchange_backward += work.backward_us;
    } else {
      const double share = work.communication ? 1 - o.overlap_tensor : 1;
      compute_forward += share * work.forward_us;
      compute_backward += share * work.backward_us;
    }
    s.weight_gradient += work.weight_gradient_us;
  }
  const double exchange = exchange_forward + exchange_backward;
  const double compute = compute_forward + compute_backward;
  // Behind the other microbatch's computation, which loses the multiprocessors that move rows.
  if (o.two_batches && exchange > 0)
    s.exposed_share = (std::max(exchange, compute + busy_share * exchange) - compute) / exchange;
  s.forward = compute_forward + s.exposed_share * exchange_forward;
  s.backward = compute_backward + s.exposed_share * exchange_backward;
  return s;
}

/// Idle time of a step beyond the microbatches of the busiest stage.
/// Source: planner.md 3; for stages of unequal times the sum over the others instead of p - 1 times one.
double bubble_of(const StepTime& time, const TrainingOptions& o, std::size_t worst) {
  const double p = real(time.options.layout.pp);
  if (p == 1) return 0;
  double others = 0, weights = 0;
  for (std::size_t i = 0; i < time.stages.size(); ++i) {
    if (i == worst) continue;
    const StageTime& s = time.stages[i];
    others += s.forward_us + s.backward_us + 2 * s.send_us * (1 - time.options.overlap_pipeline);
    weights += s.weight_gradient_us;
  }
  switch (o.schedule) {
    case Schedule::gpipe:
    case Schedule::one_f_one_b:
      return others;
    case Schedule::interleaved:
      return others / real(o.chunks);
    case Schedule::zb_h1:
      return std::max(0.0, others - 2 * weights);
    case Schedule::zb_h2:
      return std::max(0.0, others - 3 * weights);
    case Schedule::dualpipe: {
      // (PP / 2 - 1) (F&B + B - 3 W), of the mean of the device's two stages.
      const StageTime& a = time.stages[worst];
      const StageTime& b = time.stages[time.stages.size() - 1 - worst];
      return std::max(0.0, (p / 2 - 1) *
                               (a.forward_us + b.forward_us + 2 * (a.backward_us + b.backward_us) -
                                3 * (a.weight_gradient_us + b.weight_gradient_us)) /
                               2);
    }
  }
  return others;
}

void add_part(StepTime& time, const std::string& name, const std::string& tier, double us, double exposed,
              double flops, double bytes) {
  if (us == 0 && exposed == 0) return;
  for (TimePart& part : time.parts) {
    if (part.name != name) continue;
    part.us += us;
    part.exposed_us += exposed;
    part.flops += flops;
    part.bytes += bytes;
    return;
  }
  time.parts.push_back({name, tier, us, exposed, flops, bytes});
}

void add_works(StepTime& time, const Works& works, double times, double exchange_share) {
  for (const Work& work : works.all()) {
    const double us = times * (work.forward_us + work.backward_us);
    double share = 1;
    if (is_exchange(work))
      share = exchange_share;
    else if (work.communication)
      share = 1 - time.options.overlap_tensor;
    add_part(time, work.name, work.tier, us, share * us, times * work.flops, times * work.bytes);
    if (!work.communication) continue;
    time.exposed_communication_us += share * us;
    time.hidden_communication_us += (1 - share) * us;
  }
}

class Stepper {
 public:
  Stepper(const ModelSpec& model, const Machine& machine, StepTime& time, const CostModel* fits)
      : model_(model),
        machine_(machine),
        time_(time),
        timer_(model, machine, time.options, time.imbalance, fits) {
    time_.path = timer_.exchange().path;
    time_.exchange_source = timer_.exchange().source;
    time_.kernels = timer_.exchange().kernels;
    time_.notes = timer_.exchange().notes;
    const Layout& layout = time.options.layout;
    for (std::int64_t stage = 0; stage < layout.pp; ++stage) {
      Works works;
      const std::int64_t begin = first_layer(layout, stage);
      for (std::int64_t i = begin; i < begin + layout.stage_layers[static_cast<std::size_t>(stage)]; ++i)
        works.add(timer_.layer(model.layers[static_cast<std::size_t>(i)]), 1);
      if (stage == 0) works.add(timer_.embedding(), 1);
      if (stage == layout.pp - 1) {
        works.add(timer_.head(), 1);
        // A module is a last layer with a head of its own; its projection is small beside them.
        if (time.options.phase == Phase::training && time.options.training.mtp) {
          works.add(timer_.layer(model.layers.back()), real(model.mtp_layers));
          works.add(timer_.head(), real(model.mtp_layers));
        }
        // Drafts run it one after the other, each for one token of a sequence: small kernels, which gain nothing from
        // the other drafts.
        if (time.options.phase == Phase::decode && time.options.drafts > 0) {
          StepTimeOptions one = time.options;
          one.drafts = 0;
          const LayerTimer draft(model, machine, one, time.imbalance, fits);
          works.add(draft.layer(model.layers.back()), real(time.options.drafts));
          works.add(draft.head(), real(time.options.drafts));
        }
      }
      works_.push_back(works);
    }
    place_sends();
  }

  void train();
  void serve();

 private:
  void place_sends() {
    const Layout& layout = time_.options.layout;
    const Group pair = layout.pp > 1 ? place_group(machine_, layout.pp, layout.world() / layout.pp) : Group{};
    // Stages of one domain's GPUs that follow each other may share it; what leaves it sets the pace.
    send_us_ = send_us(machine_, pair, timer_.send_bytes());
    tier_ = tier_name(pair.tier(machine_));
    const double chunks = time_.options.phase == Phase::training ? real(time_.options.training.chunks) : 1;
    for (const Works& works : works_) {
      const Summed s = sum_of(works, time_.options, timer_.exchange().busy_share);
      time_.stages.push_back(
          {s.forward, s.backward, s.weight_gradient, layout.pp > 1 ? chunks * send_us_ : 0});
      shares_.push_back(s.exposed_share);
    }
  }
  void gradients_and_optimizer(std::size_t worst);
  [[nodiscard]] double needed_flops() const {
    double flops = 0;
    for (const Works& works : works_)
      for (const Work& work : works.all()) flops += work.needed_flops;
    return flops;
  }
  /// Peak of the fastest type in use, so that utilization is not flattered and never above 1.
  [[nodiscard]] double peak_flops() {
    const GpuSpec& gpu = machine_.node.gpu;
    const auto rate = [&gpu](MathType type) {
      return type == MathType::bf16 ? gpu.bf16_tflops
                                    : (type == MathType::fp8 ? gpu.fp8_tflops : gpu.fp4_tflops);
    };
    // Attention multiplies in bf16 whatever the projections do.
    time_.peak_type = MathType::bf16;
    const StepTimeOptions& o = time_.options;
    for (const MathType type : {o.math, model_.experts > 0 ? o.expert_math : o.math})
      if (rate(type) > rate(time_.peak_type)) time_.peak_type = type;
    return 1e12 * rate(time_.peak_type);
  }

  const ModelSpec& model_;
  const Machine& machine_;
  StepTime& time_;
  LayerTimer timer_;
  std::vector<Works> works_;
  std::vector<double> shares_;
  double send_us_ = 0;
  std::string tier_;
};

void Stepper::gradients_and_optimizer(std::size_t worst) {
  const StepTimeOptions& o = time_.options;
  const Layout& layout = o.layout;
  const StageParameters parameters =
      stage_parameters(model_, layout, static_cast<std::int64_t>(worst), o.training.mtp);
  const double dense = parameters.matrices + parameters.other;
  const double experts = parameters.experts;
  const double dense_ranks = real(layout.dp * layout.cp);
  const double expert_ranks = real(layout.edp());
  const Group dense_group = place_group(machine_, layout.dp * layout.cp, layout.tp);
  const Group expert_group = place_group(machine_, layout.edp(), layout.etp * layout.ep);
  const auto sync = [&](const Group& group, double count) {
    const double gradients = count * real(o.training.gradient_bytes);
    if (o.training.zero == 0) return all_reduce_us(machine_, group, gradients);
    return reduce_scatter_us(machine_, group, gradients) +
           (o.training.zero < 3 ? all_gather_us(machine_, group, 2 * count) : 0);
  };
  const double us = sync(dense_group, dense) + sync(expert_group, experts);
  const double hidden = o.overlap_gradients * std::min(us, time_.stages[worst].backward_us);
  const Group& far = dense_group.domains >= expert_group.domains ? dense_group : expert_group;
  add_part(time_, "gradient_sync", tier_name(far.tier(machine_)), us, us - hidden, 0,
           (dense * (dense_ranks - 1) / dense_ranks + experts * (expert_ranks - 1) / expert_ranks) *
               real(o.training.gradient_bytes));
  time_.exposed_communication_us += us - hidden;
  time_.hidden_communication_us += hidden;
  if (o.training.zero == 3) {
    // Each microbatch gathers the weights for its forward and again for its backward pass.
    const double gather = 2 * real(o.training.microbatches) *
                          (all_gather_us(machine_, dense_group, 2 * dense) +
                           all_gather_us(machine_, expert_group, 2 * experts));
    // No more hides than there is computation that nothing else hides behind.
    double room = -time_.hidden_communication_us;
    for (const TimePart& part : time_.parts)
      if (part.tier == "compute" && part.name != "bubble") room += part.us;
    const double behind = o.overlap_gradients * std::clamp(room, 0.0, gather);
    add_part(time_, "weight_gather", tier_name(far.tier(machine_)), gather, gather - behind, 0,
             2 * real(o.training.microbatches) * 2 * (dense + experts));
    time_.exposed_communication_us += gather - behind;
    time_.hidden_communication_us += behind;
  }
  // States are read and written, gradients read and cleared, bf16 weights written.
  const double per_parameter =
      2 * real(optimizer_bytes(o.training.optimizer)) + 2 * real(o.training.gradient_bytes) + 2;
  const double owned = o.training.zero >= 1 ? dense / dense_ranks + experts / expert_ranks : dense + experts;
  const KernelTime step = elementwise_time(machine_, owned * per_parameter, o.efficiency.elementwise);
  add_part(time_, "optimizer", "compute", step.us, step.us, 0, step.bytes);
}

void Stepper::train() {
  const StepTimeOptions& o = time_.options;
  const double m = real(o.training.microbatches);
  const double sends = 2 * (1 - o.overlap_pipeline);
  const auto busy = [&](const StageTime& s) { return s.forward_us + s.backward_us + sends * s.send_us; };
  std::size_t worst = 0;
  for (std::size_t i = 1; i < time_.stages.size(); ++i)
    if (busy(time_.stages[i]) > busy(time_.stages[worst])) worst = i;
  if (o.training.schedule == Schedule::dualpipe) {
    // A device holds a stage from each end, and half of the microbatches pass through each.
    const auto pair = [&](std::size_t i) {
      return busy(time_.stages[i]) + busy(time_.stages[time_.stages.size() - 1 - i]);
    };
    worst = 0;
    for (std::size_t i = 1; i < time_.stages.size() / 2; ++i)
      if (pair(i) > pair(worst)) worst = i;
    const std::size_t other = time_.stages.size() - 1 - worst;
    add_works(time_, works_[worst], m / 2, shares_[worst]);
    add_works(time_, works_[other], m / 2, shares_[other]);
  } else {
    add_works(time_, works_[worst], m, shares_[worst]);
  }
  const double send = 2 * m * time_.stages[worst].send_us;
  add_part(time_, "pipeline_transfer", tier_, send, (1 - o.overlap_pipeline) * send, 0,
           2 * m * real(o.training.chunks) * (o.layout.pp > 1 ? timer_.send_bytes() : 0));
  time_.exposed_communication_us += (1 - o.overlap_pipeline) * send;
  time_.hidden_communication_us += o.overlap_pipeline * send;
  time_.bubble_us = bubble_of(time_, o.training, worst);
  add_part(time_, "bubble", "compute", time_.bubble_us, time_.bubble_us, 0, 0);
  gradients_and_optimizer(worst);
  for (const TimePart& part : time_.parts) time_.step_us += part.exposed_us;
  const double tokens = real(o.training.micro_batch) * m * real(o.training.sequence) * real(o.layout.dp);
  time_.tokens_per_s = tokens / time_.step_us * 1e6;
  time_.tokens_per_s_per_gpu = time_.tokens_per_s / real(o.layout.world());
  time_.model_flops_utilization =
      needed_flops() * m / real(o.layout.pp) / (time_.step_us * 1e-6 * peak_flops());
}

void Stepper::serve() {
  const StepTimeOptions& o = time_.options;
  const double batches = o.two_batches ? 2 : 1;
  double slowest = 0;
  for (std::size_t i = 0; i < works_.size(); ++i) {
    add_works(time_, works_[i], batches, shares_[i]);
    time_.stages[i].forward_us *= batches;
    time_.stages[i].send_us *= batches;
    slowest =
        std::max(slowest, time_.stages[i].forward_us + time_.stages[i].send_us * (1 - o.overlap_pipeline));
  }
  const double sends = batches * real(o.layout.pp - 1) * send_us_;
  add_part(time_, "pipeline_transfer", tier_, sends, (1 - o.overlap_pipeline) * sends, 0,
           batches * real(o.layout.pp - 1) * timer_.send_bytes());
  time_.exposed_communication_us += (1 - o.overlap_pipeline) * sends;
  time_.hidden_communication_us += o.overlap_pipeline * sends;
  for (const TimePart& part : time_.parts) time_.step_us += part.exposed_us;
  if (o.phase == Phase::prefill) {
    time_.ttft_ms = time_.step_us * 1e-3;
    time_.tokens_per_s = real(o.batch_tokens * o.layout.dp) / slowest * 1e6;
    time_.model_flops_utilization =
        needed_flops() * batches / real(o.layout.pp) / (slowest * 1e-6 * peak_flops());
  } else {
    // The pp parts of the sequences follow each other through the stages.
    const double idle = std::max(0.0, real(o.layout.pp) * slowest - time_.step_us);
    time_.bubble_us = idle;
    add_part(time_, "bubble", "compute", idle, idle, 0, 0);
    time_.step_us += idle;
    double accepted = 0;
    for (std::int64_t i = 0; i <= o.drafts; ++i) accepted += std::pow(o.acceptance, real(i));
    time_.tpot_ms = time_.step_us * 1e-3 / accepted;
    time_.tokens_per_s_per_user = 1000 / time_.tpot_ms;
    time_.tokens_per_s = real(o.sequences * o.layout.dp) * time_.tokens_per_s_per_user;
  }
  time_.tokens_per_s_per_gpu = time_.tokens_per_s / real(o.layout.world());
}

}  // namespace

const std::vector<std::string>& phase_names() {
  static const std::vector<std::string> names = {"training", "prefill", "decode"};
  return names;
}

const std::vector<std::string>& exchange_kernel_names() {
  static const std::vector<std::string> names = {"automatic", "tiers", "normal", "low_latency", "nvlink"};
  return names;
}

double StepTime::exposed_us(const std::string& name) const noexcept {
  for (const TimePart& part : parts)
    if (part.name == name) return part.exposed_us;
  return 0;
}

StepTime step_time(const ModelSpec& model, const Machine& machine, const StepTimeOptions& options,
                   const CostModel* fits) {
  StepTime time;
  time.options = options;
  StepTimeOptions& o = time.options;
  o.layout = resolve(o.layout, model);
  check_step(model, machine, o);
  if (o.phase == Phase::training && o.training.microbatches == 0)
    o.training.microbatches = o.layout.pp * (o.training.schedule == Schedule::dualpipe ? 2 : 1);
  if (o.phase == Phase::training) {
    // The planner of memory knows what schedules and options go together.
    MemoryOptions memory;
    memory.layout = o.layout;
    memory.training = o.training;
    (void)plan_memory(model, memory);
  }
  if (o.dispatch_payload.empty())
    o.dispatch_payload = o.expert_math == MathType::bf16 ? "bfloat16" : "fp8_block128";
  (void)row_bytes(o.dispatch_payload, model.hidden);
  (void)row_bytes(o.combine_payload, model.hidden);
  time.imbalance = used_imbalance(model, o);
  Stepper stepper(model, machine, time, fits);
  if (o.phase == Phase::training)
    stepper.train();
  else
    stepper.serve();
  if (!std::isfinite(time.step_us) || time.step_us <= 0)
    refuse(fmt::format("a step of {} us: the numbers of this case are beyond what can be computed",
                       time.step_us));
  if (machine.gpus() > o.layout.world())
    time.notes.push_back(fmt::format("the layout uses {} of {} GPUs", o.layout.world(), machine.gpus()));
  return time;
}

}  // namespace shunt::plan

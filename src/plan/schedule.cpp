#include <shunt/plan/schedule.h>

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>

namespace shunt::plan {
namespace {

constexpr std::int64_t kMostStages = 4096;
constexpr std::int64_t kMostMicrobatches = 1 << 20;
constexpr std::int64_t kMostChunks = 64;
constexpr double kMostTime = 1e12;

[[noreturn]] void refuse(const std::string& why) {
  throw Error(Errc::invalid_argument, why);
}

double real(std::int64_t value) {
  return static_cast<double>(value);
}

const std::string& name_of(Pipeline pipeline) {
  return pipeline_names()[static_cast<std::size_t>(pipeline)];
}

void in_range(const char* name, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high)
    refuse(fmt::format("{} {}: expected a number in [{}, {}]", name, value, low, high));
}

void check_time(const char* name, double value) {
  if (!(value >= 0 && value <= kMostTime))
    refuse(fmt::format("{} {}: expected a time in [0, {:g}]", name, value, kMostTime));
}

void check(Pipeline pipeline, const ScheduleOptions& o) {
  in_range("stages", o.stages, 1, kMostStages);
  in_range("microbatches", o.microbatches, 1, kMostMicrobatches);
  check_time("forward", o.times.forward);
  check_time("backward-input", o.times.backward_input);
  check_time("backward-weight", o.times.backward_weight);
  check_time("overlapped", o.times.overlapped);
  if (o.times.forward + o.times.backward() <= 0) refuse("all passes take no time");
  const std::string& name = name_of(pipeline);
  const auto at_least = [&](std::int64_t microbatches) {
    if (o.microbatches < microbatches)
      refuse(fmt::format("{} needs at least {} microbatches for {} stages, not {}", name, microbatches,
                         o.stages, o.microbatches));
  };
  switch (pipeline) {
    case Pipeline::gpipe:
    case Pipeline::one_f_one_b:
      break;
    case Pipeline::interleaved:
      in_range("chunks", o.chunks, 2, kMostChunks);
      if (o.stages < 2) refuse("interleaved needs at least 2 stages");
      if (o.microbatches % o.stages != 0)
        refuse(fmt::format("interleaved needs microbatches that {} stages divide, not {}", o.stages,
                           o.microbatches));
      break;
    case Pipeline::zb_h1:
    case Pipeline::zb_v:
    case Pipeline::v_half:
    case Pipeline::v_min:
      at_least(o.stages);
      break;
    case Pipeline::zb_h2:
      at_least(2 * o.stages - 1);
      break;
    case Pipeline::dualpipe:
    case Pipeline::dualpipev:
      if (o.stages < 2 || o.stages % 2 != 0)
        refuse(fmt::format("{} needs an even number of stages, not {}", name, o.stages));
      if (pipeline == Pipeline::dualpipe && o.microbatches % 2 != 0)
        refuse(fmt::format("dualpipe needs an even number of microbatches, not {}", o.microbatches));
      at_least(pipeline == Pipeline::dualpipe ? 2 * o.stages : o.stages);
      break;
  }
  if (pipeline == Pipeline::zb_v &&
      (o.times.forward != o.times.backward_input || o.times.forward != o.times.backward_weight))
    refuse(
        fmt::format("zb-v has a closed form only where its three passes take equal time, not {}, {} and {}",
                    o.times.forward, o.times.backward_input, o.times.backward_weight));
  if (o.stage_forward.empty()) return;
  if (pipeline != Pipeline::gpipe && pipeline != Pipeline::one_f_one_b)
    refuse(fmt::format("{} has no closed form for unequal stages; gpipe and 1f1b have", name));
  if (static_cast<std::int64_t>(o.stage_forward.size()) != o.stages)
    refuse(fmt::format("{} forward times for {} stages", o.stage_forward.size(), o.stages));
  for (const double time : o.stage_forward) check_time("forward", time);
  if (o.times.forward <= 0) refuse("forward 0: the backward times of unequal stages are in proportion to it");
}

/// Unequal stages: no device can finish before the way to it, its own passes, and the way back.
void cost_of_unequal(const ScheduleOptions& o, ScheduleCost& cost) {
  const double scale = 1 + o.times.backward() / o.times.forward;  // Passes of a stage over its forward pass
  double busiest = 0;
  double before = 0;
  for (const double forward : o.stage_forward) {
    const double own = real(o.microbatches) * forward * scale;
    cost.step = std::max(cost.step, before * scale + own);
    busiest = std::max(busiest, own);
    before += forward;
  }
  double idlest = cost.step;
  for (const double forward : o.stage_forward)
    idlest = std::min(idlest, real(o.microbatches) * forward * scale);
  cost.makespan = cost.step;
  cost.bubble = cost.step - idlest;
  cost.over_ideal = busiest > 0 ? cost.step / busiest - 1 : 0;
  cost.exact = false;
  cost.remark = "a lower bound: the way to the slowest stage, its passes, and the way back";
}

}  // namespace

const std::vector<std::string>& pipeline_names() {
  static const std::vector<std::string> names = {"gpipe", "1f1b",   "interleaved", "zb-h1",    "zb-h2",
                                                 "zb-v",  "v-half", "v-min",       "dualpipe", "dualpipev"};
  return names;
}

Pipeline find_pipeline(std::string_view name) {
  const auto& names = pipeline_names();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end())
    refuse(fmt::format("schedule \"{}\" does not exist; {}", name, allowed_names(name, names)));
  return static_cast<Pipeline>(found - names.begin());
}

double peak_microbatches(Pipeline pipeline, std::int64_t stages, std::int64_t microbatches,
                         std::int64_t chunks, std::int64_t device) {
  const double p = real(stages);
  const double s = real(device);
  const double m = real(microbatches);
  const double v = real(chunks);
  if (stages == 1) return 1;
  switch (pipeline) {
    case Pipeline::gpipe:
      return m;
    case Pipeline::one_f_one_b:
      return std::min(m, p - s);
    case Pipeline::interleaved:
      // With as many microbatches as stages Megatron-LM runs all forward passes first.
      return microbatches == stages ? m : std::min(m * v, 2 * (p - s - 1) + (v - 1) * p + 1) / v;
    case Pipeline::zb_h1:
    case Pipeline::zb_v:
      return std::min(m, p);
    case Pipeline::zb_h2:
      return std::min(m, 2 * p - 1);
    case Pipeline::v_half:
      return std::min(m, p / 2);
    case Pipeline::v_min:
      return std::min(m, p / 3);
    case Pipeline::dualpipe:
    case Pipeline::dualpipev:
      return p + 1;
  }
  return m;
}

ScheduleCost schedule_cost(Pipeline pipeline, const ScheduleOptions& o) {
  check(pipeline, o);
  const PassTimes& t = o.times;
  const double p = real(o.stages);
  const double m = real(o.microbatches);
  const double passes = t.forward + t.backward();
  const double ramp = (p - 1) * passes;  // The bubble of 1f1b
  ScheduleCost cost;
  cost.pipeline = pipeline;
  cost.devices = pipeline == Pipeline::dualpipev ? o.stages / 2 : o.stages;
  for (std::int64_t device = 0; device < cost.devices; ++device)
    cost.peak_microbatches.push_back(peak_microbatches(pipeline, o.stages, o.microbatches, o.chunks, device));
  if (!o.stage_forward.empty()) {
    cost_of_unequal(o, cost);
    cost.bubble_fraction = cost.step > 0 ? cost.bubble / cost.step : 0;
    return cost;
  }
  double work = m * passes;
  double stagger = 0;  // How much later than the first device the last one ends
  switch (pipeline) {
    case Pipeline::gpipe:
    case Pipeline::one_f_one_b:
      cost.bubble = ramp;
      break;
    case Pipeline::interleaved:
      cost.bubble = ramp / real(o.chunks);
      cost.communication = real(o.chunks);
      break;
    case Pipeline::zb_h1:
      cost.bubble = (p - 1) * std::max(0.0, t.forward + t.backward_input - t.backward_weight);
      break;
    case Pipeline::zb_h2: {
      const double idle = std::max(0.0, t.forward + t.backward_input - 2 * t.backward_weight);
      cost.bubble = (p - 1) * idle;
      stagger = (p - 1) * std::max(0.0, t.forward - idle);
      cost.remark =
          "devices start their steps one after the other; needs a check of the optimizer step afterwards";
      break;
    }
    case Pipeline::zb_v:
      cost.bubble = 0;
      cost.communication = 2;
      cost.remark = "needs a check of the optimizer step afterwards";
      break;
    case Pipeline::v_half:
      cost.bubble = ramp / 2;
      cost.communication = 2;
      cost.exact = false;
      cost.remark = "published as half of the bubble of 1f1b and half of its memory";
      break;
    case Pipeline::v_min:
      cost.bubble = 2 * ramp / 3;
      cost.communication = 2;
      cost.exact = false;
      cost.remark = "published as two thirds of the bubble of 1f1b and a third of its memory, and a little";
      break;
    case Pipeline::dualpipe:
    case Pipeline::dualpipev: {
      // dualpipev folds dualpipe in the middle: each microbatch goes down and up again over half of the devices.
      const double both_ways = pipeline == Pipeline::dualpipe ? m : 2 * m;
      const double pairs = both_ways - p - 1;  // Of the devices in the middle, which idle most
      work = both_ways * passes - pairs * (passes - t.both());
      cost.bubble = (p / 2 - 1) * std::max(0.0, t.both() + t.backward() - 3 * t.backward_weight);
      cost.parameters = 2;
      cost.exact = t.forward == t.backward_weight && t.backward_input == t.backward_weight;
      if (!cost.exact)
        cost.remark = "exact for equal forward, input and weight passes, else within some per cent";
      break;
    }
  }
  cost.step = work + cost.bubble;
  cost.makespan = cost.step + stagger;
  cost.bubble_fraction = cost.bubble / cost.step;
  cost.over_ideal = work > 0 ? cost.bubble / work : 0;
  return cost;
}

Report report_schedule(const std::vector<Pipeline>& pipelines, const ScheduleOptions& o) {
  Report report("plan_schedule");
  std::vector<Pipeline> asked = pipelines;
  if (asked.empty())
    for (std::size_t i = 0; i < pipeline_names().size(); ++i) asked.push_back(static_cast<Pipeline>(i));
  std::vector<ScheduleCost> costs;
  for (const Pipeline pipeline : asked) {
    try {
      costs.push_back(schedule_cost(pipeline, o));
    } catch (const Error& error) {
      if (asked.size() == 1) throw;
      report.notes.push_back(fmt::format("{} is left out: {}", name_of(pipeline), error.what()));
    }
  }
  if (costs.empty()) refuse(fmt::format("no schedule fits: {}", report.notes.front()));
  std::stable_sort(costs.begin(), costs.end(), [](const ScheduleCost& a, const ScheduleCost& b) {
    return a.step * real(a.devices) < b.step * real(b.devices);
  });
  const PassTimes& t = o.times;
  report.head.set("stages", o.stages)
      .set("microbatches", o.microbatches)
      .set("chunks", o.chunks)
      .set("forward_ms", t.forward)
      .set("backward_input_ms", t.backward_input)
      .set("backward_weight_ms", t.backward_weight)
      .set("overlapped_ms", t.both());
  Table table{"schedules",
              {{"schedule", "schedule"},
               {"devices", "devices"},
               {"step_ms", "step ms"},
               {"makespan_ms", "makespan ms"},
               {"bubble_ms", "bubble ms"},
               {"bubble_fraction", "bubble", Unit::share},
               {"bubble_over_ideal", "over ideal", Unit::share},
               {"peak_microbatches", "peak microbatches"},
               {"parameters", "parameters x"},
               {"communication", "transfers x"},
               {"exact", "exact"},
               {"peaks", "peak of each device", Unit::none, true},
               {"remark", "remark", Unit::none, true}},
              {}};
  for (const ScheduleCost& cost : costs) {
    table.rows.push_back(
        {name_of(cost.pipeline), cost.devices, cost.step, cost.makespan, cost.bubble, cost.bubble_fraction,
         cost.over_ideal, *std::max_element(cost.peak_microbatches.begin(), cost.peak_microbatches.end()),
         cost.parameters, cost.communication, cost.exact, cost.peak_microbatches, cost.remark});
    if (!cost.remark.empty())
      report.notes.push_back(fmt::format("{}: {}", name_of(cost.pipeline), cost.remark));
  }
  const ScheduleCost& best = costs.front();
  report.head.set("best", name_of(best.pipeline));
  report.summary.push_back(fmt::format("{} stages, {} microbatches of {:g} forward, {:g} + {:g} backward ms",
                                       o.stages, o.microbatches, t.forward, t.backward_input,
                                       t.backward_weight));
  if (costs.size() > 1)
    report.summary.push_back(fmt::format("{} takes the least device time: a bubble of {:.2f} % of its step",
                                         name_of(best.pipeline), 100 * best.bubble_fraction));
  report.tables.push_back(table);
  if (costs.size() == 1) {
    Table devices{"devices", {{"device", "device"}, {"peak_microbatches", "peak microbatches"}}, {}};
    for (std::size_t i = 0; i < best.peak_microbatches.size(); ++i)
      devices.rows.push_back({static_cast<std::int64_t>(i), best.peak_microbatches[i]});
    report.tables.push_back(devices);
  }
  report.notes.emplace_back("transfers between stages take no time here; plan breakdown counts them");
  return report;
}

}  // namespace shunt::plan

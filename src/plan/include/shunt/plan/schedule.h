#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/plan/report.h>

namespace shunt::plan {

/// Orders in which the stages of a pipeline run the passes of their microbatches.
enum class Pipeline {
  gpipe,
  one_f_one_b,
  interleaved,
  zb_h1,
  zb_h2,
  zb_v,
  v_half,
  v_min,
  dualpipe,
  dualpipev
};
/// gpipe, 1f1b, interleaved, zb-h1, zb-h2, zb-v, v-half, v-min, dualpipe, dualpipev.
[[nodiscard]] const std::vector<std::string>& pipeline_names();
/// Errors: Errc::invalid_argument with the nearest name and those there are.
[[nodiscard]] Pipeline find_pipeline(std::string_view name);

/// Times of one stage and one microbatch, in one unit (milliseconds in reports). The backward pass is the sum of its two
/// parts: gradients of the inputs, which the stage before waits for, and gradients of the weights, which nobody does.
struct PassTimes {
  double forward = 1;
  double backward_input = 1;
  double backward_weight = 1;
  double overlapped = 0;  ///< A forward and a backward pass at once, for dualpipe; 0: their sum

  [[nodiscard]] double backward() const noexcept { return backward_input + backward_weight; }
  [[nodiscard]] double both() const noexcept { return overlapped > 0 ? overlapped : forward + backward(); }
};

struct ScheduleOptions {
  std::int64_t stages = 4;        ///< p: parts of the model; dualpipev runs them on p / 2 devices
  std::int64_t microbatches = 8;  ///< m, of one step; dualpipe: of both directions together
  std::int64_t chunks = 2;        ///< v, of a stage, for interleaved
  PassTimes times;
  /// Forward times of unequal stages, p of them; empty: all as `times`. The backward passes are in proportion. gpipe and
  /// 1f1b only.
  std::vector<double> stage_forward;
};

/// What a schedule costs, from its formula, without communication.
struct ScheduleCost {
  Pipeline pipeline = Pipeline::one_f_one_b;
  double step = 0;      ///< From the start of a device's first pass to where its next step may start
  double makespan = 0;  ///< First start to last end over all devices; longer where their starts are staggered
  double bubble = 0;    ///< Idle time of the device that idles most, in its own span
  double bubble_fraction = 0;  ///< bubble / step
  double over_ideal = 0;       ///< bubble / the time without any
  std::vector<double>
      peak_microbatches;  ///< Of each device: activations of a stage held at once, in microbatches
  std::int64_t devices = 0;
  double parameters = 1;     ///< Copies of the model's parameters over all devices
  double communication = 1;  ///< Transfers between stages, times those of 1f1b
  bool exact = true;         ///< False where the formula is a bound or an approximation; `remark` says which
  std::string remark;        ///< What the formula assumes; empty where it assumes nothing
};

/// Cost of one schedule in closed form.
/// Errors: Errc::invalid_argument for counts that the schedule does not allow (microbatches that stages do not divide,
///         odd numbers of stages, too few microbatches), times below 0 or all 0, and formulas that hold only for equal
///         passes.
/// Source: gpipe, 1f1b, interleaved: arXiv 2104.04473 and megatron/core/pipeline_parallel/schedules.py; zb-*, v-*:
///         sail-sg/zero-bubble, README; dualpipe, dualpipev: deepseek-ai/DualPipe, README. docs/planner.md has them.
[[nodiscard]] ScheduleCost schedule_cost(Pipeline pipeline, const ScheduleOptions& options);

/// Microbatches whose activations one device keeps at its peak (the list in ScheduleCost, for one device).
[[nodiscard]] double peak_microbatches(Pipeline pipeline, std::int64_t stages, std::int64_t microbatches,
                                       std::int64_t chunks, std::int64_t device);

/// Costs of several schedules beside each other, by step; those that cannot run are left out with a note, unless only
/// one was asked for. `pipelines` empty: all. Stages of the first in a table of their own.
/// Errors: as schedule_cost where one was asked for, or where none can run.
[[nodiscard]] Report report_schedule(const std::vector<Pipeline>& pipelines, const ScheduleOptions& options);

}  // namespace shunt::plan

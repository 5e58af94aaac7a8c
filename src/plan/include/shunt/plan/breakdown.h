#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/machine.h>
#include <shunt/cluster/model.h>
#include <shunt/plan/memory.h>
#include <shunt/plan/report.h>
#include <shunt/plan/step_time.h>

namespace shunt::plan {

/// A plan for a whole machine: a step, and the memory it may take.
struct PlanOptions {
  StepTimeOptions step;
  std::int64_t global_batch =
      0;  ///< Training: sequences of a step over all ranks, instead of microbatches; 0: not given
  std::int64_t capacity_bytes = 0;  ///< Of one GPU; 0: what the GPU has
  double utilization = 0.9;         ///< Serving: share of it that may be used
  bool idle_gpus = false;           ///< GPUs of the machine may be left over
};

struct PlanResult {
  PlanOptions options;  ///< With defaults filled in
  StepTime time;
  MemoryPlan memory;
  bool fits = true;

  [[nodiscard]] double margin_bytes() const { return memory.budget() - memory.worst_stage().total(); }
};

/// Time and memory of one plan.
/// Errors: Errc::invalid_argument for products that do not match the GPUs (unless idle_gpus), global batches that ranks do
///         not divide, and as plan_memory and step_time. Plans that do not fit the memory are no error.
[[nodiscard]] PlanResult evaluate_plan(const ModelSpec& model, const Machine& machine,
                                       const PlanOptions& options, const CostModel* fits);

/// One kind of parallel group of a layout.
struct ParallelGroup {
  std::string name;  ///< tp, cp, dp, pp, etp, ep, edp
  std::int64_t size = 1;
  std::int64_t stride = 1;  ///< Ranks between neighbours
  Group place;              ///< Of the first group
};
/// Groups of a resolved layout, ranks counting up tp, cp, dp, pp (experts: etp, ep, edp, pp).
[[nodiscard]] std::vector<ParallelGroup> parallel_groups(const Machine& machine, const Layout& layout);

/// Indices of one rank in its groups.
struct RankIndices {
  std::int64_t tp = 0, cp = 0, dp = 0, pp = 0, etp = 0, ep = 0, edp = 0;
};
[[nodiscard]] RankIndices rank_indices(const Layout& layout, std::int64_t rank);

/// What limits a plan, and what would help. Sentences.
struct Findings {
  std::vector<std::string> hot_spots;
  std::vector<std::string> advice;
};
[[nodiscard]] Findings judge(const ModelSpec& model, const Machine& machine, const PlanResult& result);

/// Parts and stages of one step, with a note where the plan does not fit into the GPUs' memory. GPUs may be left over.
/// Errors: as evaluate_plan.
[[nodiscard]] Report report_step(const ModelSpec& model, const Machine& machine, const PlanOptions& options,
                                 const CostModel* fits);

/// Checks, groups, ranks (at most 512), parts of the step and of the memory, hot spots and advice.
/// Errors: as evaluate_plan.
[[nodiscard]] Report report_breakdown(const ModelSpec& model, const Machine& machine,
                                      const PlanOptions& options, const CostModel* fits);

/// What two plans are compared by; NaN where a plan has no such number.
struct PlanMetric {
  std::string key;
  std::string title;
  Unit unit = Unit::none;
  bool less_is_better = true;
  bool is_of_step =
      false;  ///< A time of a whole step: says nothing between steps of different numbers of tokens
};
[[nodiscard]] const std::vector<PlanMetric>& plan_metrics();
/// The values of these for a plan, in the same order.
[[nodiscard]] std::vector<double> metric_values(const PlanResult& result);
/// The layout in one line: "tp 1 pp 16 dp 128 ep 64".
[[nodiscard]] std::string layout_name(const Layout& layout);

struct ComparedPlan {
  std::string name;
  std::vector<double> values;  ///< Of plan_metrics()
};
/// Both values, B over A, and which is better, for every metric that both have.
/// Errors: Errc::invalid_argument where they have none in common.
[[nodiscard]] Report report_compare(const ComparedPlan& a, const ComparedPlan& b);

}  // namespace shunt::plan

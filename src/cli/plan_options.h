#pragma once

#include <memory>
#include <string>
#include <vector>

#include <shunt/cluster/calibration.h>
#include <shunt/cluster/model.h>
#include <shunt/plan/breakdown.h>

#include "cluster_options.h"

namespace shunt::cli {

/// Options of one plan: model, cluster, phase, layout, workload. Shared by step, breakdown, compare and search.
struct PlanRequest {
  ClusterOptions cluster;
  plan::PlanOptions plan;
  std::string model;
  std::string weights;
  std::string expert_weights;
  std::string math;
  std::string expert_math;
  std::string loads;
  std::string fit;
  bool tiers = false;
  double memory_gib = 0;
  std::vector<std::string> training_only;  ///< Options given that only one phase reads
  std::vector<std::string> prefill_only;
  std::vector<std::string> decode_only;
  std::vector<std::string> serving_only;
};

/// What a request names, read.
struct LoadedPlan {
  ModelSpec model;
  Machine machine;
  plan::PlanOptions options;
  std::unique_ptr<Calibration> calibration;
  std::unique_ptr<CostModel> fits;
};

/// Which options a command has.
struct PlanOptionParts {
  bool layout = true;  ///< Layout, batch and schedule: a search chooses these itself
  bool whole = true;   ///< What only a whole plan reads: memory, the global batch
};

void add_plan_options(CLI::App& app, PlanRequest& request, const PlanOptionParts& parts);

/// Errors: as the readers; and Errc::invalid_argument for options of another phase.
[[nodiscard]] LoadedPlan load_plan(PlanRequest request);

}  // namespace shunt::cli

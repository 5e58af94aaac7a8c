#pragma once

#include <shunt/cluster/model.h>
#include <shunt/plan/report.h>

namespace shunt::plan {

/// What `shunt plan params` prints: exact parameter counts by part, active parameters, bytes per token of the KV
/// cache, and bytes of the published checkpoint.
[[nodiscard]] Report report_parameters(const ModelSpec& model);

}  // namespace shunt::plan

#pragma once

#include <algorithm>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/pack/cuda.h>

namespace shunt::cuda::detail {

/// Most units of a plan. Fewer make the walk of each longer, more the prefix over them.
inline constexpr std::int32_t kMaxUnits = 256;

/// How the selections are cut into units, and the parts of the workspace.
struct PlanSizes {
  std::int32_t unit = 0;
  std::int32_t num_units = 0;
  std::int64_t per_unit_bytes = 0;
  std::int64_t bytes = 0;

  explicit PlanSizes(const PlanInput& input) {
    const std::int64_t selections = input.selections.num_tokens * input.selections.top_k;
    const std::int64_t share = (selections + kMaxUnits - 1) / kMaxUnits;
    const std::int64_t steps = std::max<std::int64_t>((share + device::kWarpSize - 1) / device::kWarpSize, 1);
    unit = static_cast<std::int32_t>(steps * device::kWarpSize);
    num_units = static_cast<std::int32_t>(std::max<std::int64_t>((selections + unit - 1) / unit, 1));
    per_unit_bytes = std::int64_t{4} * num_units * input.num_experts;
    bytes = (per_unit_bytes + std::int64_t{4} * num_units + 4 + 15) / 16 * 16;
  }
};

}  // namespace shunt::cuda::detail

#include "memory_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::bench {

MethodPlan plan_methods(const std::vector<MethodSpec>& specs, const Workload& workload,
                        const MethodSettings& settings, std::int64_t available_bytes,
                        std::int64_t max_moved_bytes) {
  const Point& point = workload.point();
  // A part stays free for page tables, stacks and whoever else runs here.
  const std::int64_t budget = available_bytes < 0 ? -1 : available_bytes / 10 * 9;
  const std::int64_t always =
      point.tokens * (workload.row_bytes() + workload.scale_bytes() + workload.out_row_bytes());
  MethodPlan plan{.specs = specs, .skipped = std::vector<std::string>(specs.size()), .shared = {}};
  std::int64_t own = 0;
  std::int64_t smallest = -1;
  bool whole_step = false;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const MethodSpec& spec = specs[i];
    if (!spec.unavailable.empty()) {
      plan.skipped[i] = spec.unavailable;
      continue;
    }
    if (const std::int64_t moved = spec.moved_bytes ? spec.moved_bytes(workload) : 0;
        max_moved_bytes >= 0 && moved > max_moved_bytes) {
      plan.skipped[i] = fmt::format(
          "moves {} in one iteration; the rounds do not fit its share of --max-seconds", format_bytes(moved));
      continue;
    }
    const std::int64_t its_own = spec.own_bytes ? spec.own_bytes(workload, settings) : 0;
    const SharedSizes shared =
        larger(plan.shared, spec.shared_sizes ? spec.shared_sizes(workload) : SharedSizes{});
    const std::int64_t needed = point.ranks * (own + its_own + shared.total() + always);
    if (budget >= 0 && needed > budget) {
      plan.skipped[i] =
          fmt::format("needs {} on {} ranks together with the methods before it; {} are available",
                      format_bytes(needed), point.ranks, format_bytes(budget));
      if (spec.kind != MethodKind::floor && (smallest < 0 || needed < smallest)) smallest = needed;
      continue;
    }
    own += its_own;
    plan.shared = shared;
    whole_step = whole_step || spec.kind != MethodKind::floor;
  }
  if (!whole_step && smallest >= 0)
    throw Error(
        Errc::out_of_memory,
        fmt::format("{} with {} tokens per rank on {} ranks needs at least {} of memory for one method; {} "
                    "are available; "
                    "--max-recv-rows, fewer --tokens, fewer --ranks or --layout packed reduce it",
                    point.preset, point.tokens, point.ranks, format_bytes(smallest), format_bytes(budget)));
  return plan;
}

}  // namespace shunt::bench

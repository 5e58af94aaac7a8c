#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <shunt/plan/lab.h>

namespace shunt::plan::lab {

using Chosen = std::vector<std::pair<const Target*, Settings>>;

[[nodiscard]] const char* role_name(Role role);
/// With "moe_parallelism:" before it.
[[nodiscard]] std::string full_name(const Target& target);
[[nodiscard]] const Plan& plan_of(const Target& target, Role role);

/// The fabric of a run, checked. Errors: Errc::invalid_argument says who named a fabric that the target does not have.
[[nodiscard]] std::string fabric_of(const Target& target, const Settings& settings);

/// The targets in order; those of "both" fabrics once for each.
[[nodiscard]] Chosen one_fabric_each(const Chosen& chosen);

/// What the options of `chosen` do not change though one could think so: a line each.
[[nodiscard]] std::vector<std::string> ignored_settings(const Chosen& chosen);

/// One check of --validate.
struct Check {
  const char* name;
  bool baseline;
  bool optimized;
};

/// A note for each check. Result: false where a baseline passes one that its optimized half does not.
[[nodiscard]] bool report_checks(const Target& target, const std::vector<Check>& checks,
                                 std::vector<std::string>& notes);

/// GPUs that moe_vllm_env serves with.
[[nodiscard]] std::int64_t serving_gpus(const Settings& settings, std::string_view fabric);
[[nodiscard]] std::int64_t serving_stages(const Settings& settings, std::string_view fabric);

}  // namespace shunt::plan::lab

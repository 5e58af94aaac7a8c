#include "lab_internal.h"

#include <algorithm>
#include <cstdlib>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

namespace shunt::plan::lab {
namespace {

bool has(const Target& target, const std::string& fabric) {
  return std::find(target.fabrics.begin(), target.fabrics.end(), fabric) != target.fabrics.end();
}

/// $MPE_FABRIC, which the lab reads for its environments only; empty where it is not set.
std::string environment_fabric(const Target& target) {
  if (target.kind == Kind::plan) return "";
  const char* value = std::getenv("MPE_FABRIC");
  return value == nullptr ? "" : value;
}

/// The variable belongs to alltoall_tuning; moe_vllm_env follows it where it can.
bool may_ignore(const Target& target, const std::string& fabric) {
  return target.kind == Kind::vllm && !has(target, fabric);
}

}  // namespace

const char* role_name(Role role) {
  return role == Role::baseline ? "baseline" : "optimized";
}

std::string full_name(const Target& target) {
  return "moe_parallelism:" + target.name;
}

const Plan& plan_of(const Target& target, Role role) {
  return role == Role::baseline ? target.baseline : target.optimized;
}

std::string fabric_of(const Target& target, const Settings& settings) {
  std::string fabric = settings.fabric;
  const char* source = "";
  if (fabric.empty()) {
    fabric = environment_fabric(target);
    source = "MPE_FABRIC: ";
    if (fabric.empty() || may_ignore(target, fabric))
      return target.fabrics.empty() ? "" : target.fabrics.front();
  }
  if (target.fabrics.empty())
    throw Error(Errc::invalid_argument,
                fmt::format("fabric \"{}\" of {}: it has none to choose", fabric, target.name));
  if (!has(target, fabric))
    throw Error(Errc::invalid_argument, fmt::format("{}fabric \"{}\" of {}: allowed are {}", source, fabric,
                                                    target.name, fmt::join(target.fabrics, ", ")));
  if (fabric == "both")
    throw Error(Errc::invalid_argument,
                fmt::format("fabric \"both\" of {} is two runs: ask for ib, then for ethernet", target.name));
  return fabric;
}

Chosen one_fabric_each(const Chosen& chosen) {
  Chosen all;
  for (const auto& [target, settings] : chosen) {
    if (settings.fabric != "both" || !has(*target, "both")) {
      all.emplace_back(target, settings);
      continue;
    }
    for (const std::string& fabric : target->fabrics) {
      if (fabric == "both") continue;
      all.emplace_back(target, settings);
      all.back().second.fabric = fabric;
    }
  }
  return all;
}

std::vector<std::string> ignored_settings(const Chosen& chosen) {
  static const Settings kDefault;
  std::vector<std::string> notes;
  for (const auto& [target, settings] : chosen) {
    if (!target->fixed_spec.empty() && settings.spec != kDefault.spec && settings.spec != target->fixed_spec)
      notes.push_back(
          fmt::format("{} brings its own spec: {} does not hold for it", full_name(*target), settings.spec));
    const std::string fabric = settings.fabric.empty() ? environment_fabric(*target) : "";
    if (!fabric.empty() && may_ignore(*target, fabric))
      notes.push_back(fmt::format("MPE_FABRIC is {}, which {} does not have: it takes {}", fabric,
                                  full_name(*target), target->fabrics.front()));
  }
  return notes;
}

bool report_checks(const Target& target, const std::vector<Check>& checks, std::vector<std::string>& notes) {
  bool ok = true;
  for (const Check& check : checks) {
    const bool worse = check.baseline && !check.optimized;
    ok = ok && !worse;
    notes.push_back(fmt::format("{} validate: {}: baseline {}, optimized {}{}", full_name(target), check.name,
                                check.baseline ? "yes" : "no", check.optimized ? "yes" : "no",
                                worse ? ": FAILED" : ""));
  }
  return ok;
}

std::int64_t serving_gpus(const Settings& settings, std::string_view fabric) {
  if (settings.ngpu > 0) return settings.ngpu;
  return fabric == "nvl72" ? 72 : 8;
}

std::int64_t serving_stages(const Settings& settings, std::string_view fabric) {
  if (settings.pp > 0) return settings.pp;
  return fabric == "nvl72" ? 3 : 1;
}

}  // namespace shunt::plan::lab

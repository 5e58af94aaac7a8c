#pragma once

#include <string>

namespace shunt::scenario {

/// The names that test_template_name may have, a line each; with a name, the keys of its cmd_args with their defaults.
/// Errors: Errc::invalid_argument for an unknown name, with the nearest.
[[nodiscard]] std::string describe_workloads(const std::string& name);

}  // namespace shunt::scenario

#pragma once

#include <string>
#include <vector>

#include <shunt/scenario/model.h>

namespace shunt::scenario {

/// What a TOML file describes, by its content.
enum class FileKind { system, test, scenario, unknown };

/// Errors: Errc::io with file:line:column where it is not TOML.
[[nodiscard]] FileKind classify(const std::string& path);

/// Reads a system file. Relative paths in it count from its folder.
/// Errors: Errc::io with file:line:column; an unknown key comes with the nearest one.
[[nodiscard]] System read_system(const std::string& path);

/// The names of the tests in the *.toml files of a folder, with the file of each, sorted by name.
/// Errors: Errc::io where a name is there twice, with both files.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> list_tests(const std::string& folder);

/// A test file by itself.
/// Errors: as read_scenario.
[[nodiscard]] TestDefinition read_test(const std::string& path);

/// Reads a scenario with the tests it names, and its hooks. `tests_dir` and `hook_dir` may be empty: then they are the
/// folders `test` and `hook` beside the scenario's folder, or the scenario's folder where there is none.
/// Errors: Errc::io with file:line:column for what is unknown (with the nearest), out of its range, or does not fit
///         together; for dependencies in a circle with the circle.
[[nodiscard]] Scenario read_scenario(const std::string& path, const std::string& tests_dir = {},
                                     const std::string& hook_dir = {});

}  // namespace shunt::scenario

#pragma once

#include <string>
#include <vector>

#include "toml_reader.h"

#include <shunt/scenario/model.h>

namespace shunt::scenario {

/// A table of a file. Ownership: borrows both, which must outlive it.
struct Layer {
  const std::string* path = nullptr;
  const toml::table* table = nullptr;
};

[[nodiscard]] Place place_of(const std::string& path, const toml::node& node);
[[nodiscard]] Place place_of(const std::string& path, const toml::key& key);

/// The keys that a test has in a file of its own, and as a part of a scenario.
[[nodiscard]] const std::vector<std::string>& test_keys();

/// The test that the layers describe together: keys of an earlier layer win, [cmd_args], [extra_env_vars] and
/// [extra_cmd_args] are merged key by key.
/// Errors: Errc::io with the place.
[[nodiscard]] TestDefinition merge_test(const std::vector<Layer>& layers, const Place& place);

}  // namespace shunt::scenario

#pragma once

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include <shunt/scenario/results.h>

namespace shunt::scenario {

using Json = nlohmann::ordered_json;

[[nodiscard]] Json to_json(const Scalar& value);
/// Texts, numbers, true and false; everything else is nothing.
[[nodiscard]] std::optional<Scalar> to_scalar(const Json& value);
[[nodiscard]] Json to_json(const Row& row);
/// Keys with values that are no scalar are left out.
[[nodiscard]] Row to_row(const Json& object);

/// Errors: Errc::io with the file.
[[nodiscard]] Json read_json(const std::string& path);

}  // namespace shunt::scenario

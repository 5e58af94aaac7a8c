#pragma once

#include <string>
#include <string_view>

namespace shunt::scenario {

/// A text in quotes as TOML, JSON and YAML all read it.
[[nodiscard]] std::string in_quotes(std::string_view text);

}  // namespace shunt::scenario

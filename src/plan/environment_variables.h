#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/plan/environment.h>

namespace shunt::plan {

enum class ValueKind {
  any,
  integer,  ///< In [low, high]
  choice,   ///< One of `choices`, separated by spaces
  list      ///< Some of `choices`, separated by commas, perhaps after ^
};

/// What the linter knows of one variable.
struct KnownVariable {
  const char* name;
  ValueKind kind = ValueKind::any;
  const char* choices = "";
  std::int64_t low = 0;
  std::int64_t high = 0;
  Version since{};        ///< 0.0: always
  Version deprecated{};   ///< 0.0: never
  Version removed{};      ///< 0.0: never
  const char* note = "";  ///< With deprecated and removed: what to do instead
};

[[nodiscard]] const std::vector<KnownVariable>& known_variables();

/// Names that look like one of a library's and are none, with what they are.
struct Impostor {
  const char* name;
  const char* message;
};
[[nodiscard]] const std::vector<Impostor>& impostors();

/// Prefixes of the variables that the linter judges.
[[nodiscard]] bool is_judged(std::string_view name);

}  // namespace shunt::plan

#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <shunt/core/nearest.h>

namespace shunt::detail {

[[nodiscard]] inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  return name_distance(a, b);
}

[[nodiscard]] inline std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  return nearest_name(word, candidates);
}

}  // namespace shunt::detail

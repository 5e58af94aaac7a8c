#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace shunt {

/// The name that the fewest edits (insert, delete, replace one character, swap two neighbours) make of `word`, the
/// first of equals; empty where there is none. For "did you mean".
[[nodiscard]] std::string nearest_name(std::string_view word, const std::vector<std::string>& names);

/// How many such edits that takes.
[[nodiscard]] std::size_t name_distance(std::string_view a, std::string_view b);

}  // namespace shunt

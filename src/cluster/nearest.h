#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shunt::detail {

/// Edits (insert, delete, replace one character, swap two neighbours) that turn one word into the other.
[[nodiscard]] std::size_t edit_distance(std::string_view a, std::string_view b);

/// The candidate with the smallest edit distance, the first of equals; empty where there is none.
[[nodiscard]] std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace shunt::detail

#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace shunt {

/// The name that the fewest edits (insert, delete, replace one character, swap two neighbours) make of `word`, the
/// first of equals; empty where there is none. For "did you mean".
[[nodiscard]] std::string nearest_name(std::string_view word, const std::vector<std::string>& names);

/// The nearest name where it is likely to be what was meant, whatever the case of letters: at most 2 edits or a third of
/// its letters are wrong (1 edit for names of up to 3 letters), or `word` shortens it ("gbps" for "gb_per_s"). Else empty.
[[nodiscard]] std::string near_name(std::string_view word, const std::vector<std::string>& names);

/// How the refusal of `word` ends: `did you mean "near"? Allowed are a, b, c`; `allowed are a, b, c` where none is near.
[[nodiscard]] std::string allowed_names(std::string_view word, const std::vector<std::string>& names);

/// How many such edits that takes.
[[nodiscard]] std::size_t name_distance(std::string_view a, std::string_view b);

}  // namespace shunt

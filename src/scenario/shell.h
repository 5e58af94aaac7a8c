#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace shunt::scenario {

/// One word as a shell reads it: as it is where nothing in it is special, else between single quotes.
[[nodiscard]] std::string shell_word(std::string_view text);
[[nodiscard]] std::string shell_words(const std::vector<std::string>& words);

/// Text that stands between double quotes and means itself there.
[[nodiscard]] std::string in_double_quotes(std::string_view text);

/// The value of a variable for `export NAME=...`: $NAME and ${NAME} are resolved by the shell, everything else means
/// itself. Without quotes where none are needed, as CloudAI writes it, unless `always`.
/// A value that has quotes around it already loses them first.
[[nodiscard]] std::string variable_value(std::string_view text, bool always = false);

}  // namespace shunt::scenario

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shunt {

/// @name Values of options
/// `option` names the option in errors.
/// Errors: Errc::invalid_argument with the option, the text and what is allowed.
/// @{
/// A whole number in [min, max]; the whole text must be one.
[[nodiscard]] std::int64_t parse_whole(std::string_view option, std::string_view text, std::int64_t min,
                                       std::int64_t max);
/// The same for a number with a fraction.
[[nodiscard]] double parse_number(std::string_view option, std::string_view text, double min, double max);
/// Parts between commas; empty ones are an error.
[[nodiscard]] std::vector<std::string> split_list(std::string_view option, std::string_view text);
/// @}

}  // namespace shunt

#pragma once

#include <cstdint>
#include <string_view>

namespace shunt {

/// Value of the environment variable `name`, whose text is given.
/// Errors: Errc::invalid_argument naming the variable, its value and what is allowed.
[[nodiscard]] std::int32_t parse_number(const char* name, std::string_view text, std::int32_t least,
                                        std::int32_t most);

}  // namespace shunt

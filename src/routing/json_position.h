#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace shunt::detail {

/// Column (from 1, in bytes) of a value in the JSON object `line`: that of key `key`, and with `indices` of
/// the element reached through nested arrays; of the last step of the path that exists. The parser keeps no
/// positions, and this second look is taken only when there is something to report. `line` must be valid
/// JSON.
[[nodiscard]] std::int64_t json_column(std::string_view line, std::string_view key,
                                       const std::vector<std::int64_t>& indices = {});

/// Column of the key itself.
[[nodiscard]] std::int64_t json_key_column(std::string_view line, std::string_view key);

}  // namespace shunt::detail

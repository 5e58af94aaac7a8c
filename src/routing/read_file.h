#pragma once

#include <string>

namespace shunt::detail {

/// The bytes of a file.
/// Errors: Errc::io with path and reason.
[[nodiscard]] std::string read_file(const std::string& path);

}  // namespace shunt::detail

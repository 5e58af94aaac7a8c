#pragma once

#include <cstdint>
#include <string>

namespace shunt::detail {

/// available_memory_bytes() of the system whose root directory is `root` ("" for this one): every file is
/// looked up below it, so that tests can lay out a cgroup tree of their own.
[[nodiscard]] std::int64_t available_memory_bytes(const std::string& root);

}  // namespace shunt::detail

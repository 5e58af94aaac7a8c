#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>

namespace shunt {

/// What `question` returns in a forked child, for questions to libraries that leave memory, threads or handlers behind
/// or may crash. The child ends without destructors and exit handlers; what `question` throws is no answer.
/// Result:  nothing where the child was not there, died, or took longer than `limit` (it is killed then).
/// Threads: none of the caller's other threads may hold a lock that `question` needs (malloc's is safe with glibc).
[[nodiscard]] std::optional<std::string> ask_in_child(const std::function<std::string()>& question,
                                                      std::chrono::milliseconds limit);

}  // namespace shunt

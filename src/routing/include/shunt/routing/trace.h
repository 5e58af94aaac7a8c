#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/routing/routing.h>

namespace shunt {

/// A routing trace: for each step and group, which experts its tokens chose.
struct Trace {
  std::int32_t num_experts = 0;
  std::int32_t top_k = 0;
  std::string source;                       ///< Where it comes from, free text
  std::vector<std::vector<Routing>> steps;  ///< [step][group]; all steps have the same number of groups
};

/// Reads a trace file (JSON Lines, docs/formats.md "Routing trace").
/// Errors: Errc::io with file:line:column and what was expected; routings are checked as check_routing does.
[[nodiscard]] Trace read_trace(const std::string& path);

/// Writes a trace file that read_trace reads back equal. Never overwrites.
/// Errors: Errc::io where the file exists or cannot be written; Errc::invalid_argument on a malformed trace.
void write_trace(const std::string& path, const Trace& trace);

}  // namespace shunt

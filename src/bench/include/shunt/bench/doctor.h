#pragma once

#include <string>
#include <vector>

#include <shunt/core/record.h>

namespace shunt::bench {

/// What this machine can run and what is missing: one record each of host, kernels, GPU kernels, placement, then one per
/// transport, library and SHUNT_ variable. Starts two ranks for some milliseconds to probe the round trip
/// between two cores.
[[nodiscard]] std::vector<Record> examine_machine();

/// The same for people.
[[nodiscard]] std::string format_examination(const std::vector<Record>& records);

}  // namespace shunt::bench

#pragma once

#include <vector>

#include <shunt/core/record.h>

namespace shunt::bench {

/// How this process was started and how others could be: one record each of launch, slurm and namespaces.
[[nodiscard]] std::vector<Record> examine_launch();

/// A record for every provider of libfabric and every address that it offers. Empty where this build does not know
/// libfabric or the loader does not find it.
[[nodiscard]] std::vector<Record> examine_fabric();

/// A record for every variable that is set and reaches into Shunt or a library that it uses.
[[nodiscard]] std::vector<Record> examine_environment();

}  // namespace shunt::bench

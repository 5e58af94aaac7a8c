#pragma once

#include <cstddef>
#include <vector>

#include <alltoall/sweep_case.h>

namespace shunt {
class Transport;
}

namespace sweep {

/// Runs a case as one rank: every received row, count and combined element is compared with the reference.
/// Result: everything this rank received and combined, NaN made equal, to compare with another run of the
/// case. Errors: Errc::check_failed where a result differs; what AllToAll throws.
std::vector<std::byte> run_case(shunt::Transport& transport, const SweepCase& what);

}  // namespace sweep

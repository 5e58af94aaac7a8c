#pragma once

#include <string>

#include <alltoall/sweep_case.h>

namespace shunt {
class Transport;
}

namespace shunt::programs {

/// Why run_gpu_case() does nothing in this build; empty where it does.
[[nodiscard]] std::string gpu_cases_missing();

/// Runs a case as one rank on a GPU: every received row, count and combined element is compared with the reference.
/// Errors: Errc::check_failed where a result differs; what cuda::AllToAll throws.
void run_gpu_case(Transport& transport, const sweep::SweepCase& what);

}  // namespace shunt::programs

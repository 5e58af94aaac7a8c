#pragma once

#include <string>
#include <vector>

#include <shunt/transport/launch.h>

namespace shunt::bench {

/// Throws the RankFailure of the outcome that explains best why ranks ended; `what` says what was measured.
[[noreturn]] void throw_rank_failure(const std::vector<RankOutcome>& outcomes, const std::string& what);

}  // namespace shunt::bench

#include "rank_failure.h"

#include <algorithm>

#include <fmt/format.h>

#include <shunt/bench/alltoall_bench.h>

namespace shunt::bench {
namespace {

/// How well an outcome explains the end of the run, in the order of combined_status().
int explains(const RankOutcome& outcome) {
  if (outcome.exit_status == 0) return 0;
  if (outcome.signal != 0) return 1;
  return outcome.code == Errc::peer_lost || outcome.code == Errc::timeout ? 2 : 3;
}

}  // namespace

void throw_rank_failure(const std::vector<RankOutcome>& outcomes, const std::string& what) {
  const RankOutcome& cause =
      *std::max_element(outcomes.begin(), outcomes.end(),
                        [](const RankOutcome& a, const RankOutcome& b) { return explains(a) < explains(b); });
  const std::string detail = !cause.message.empty() ? cause.message
                             : cause.signal != 0    ? fmt::format("killed by signal {}", cause.signal)
                                                    : fmt::format("status {}", cause.exit_status);
  throw RankFailure(cause.signal != 0 ? Errc::peer_lost : cause.code,
                    fmt::format("{}: rank {} ended: {}", what, cause.rank, detail), cause.exit_status);
}

}  // namespace shunt::bench

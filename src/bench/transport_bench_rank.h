#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <shunt/bench/placement.h>
#include <shunt/bench/transport_bench.h>

#include "agreement.h"

namespace shunt::bench {

/// One turn of one transport.
struct TurnRequest {
  const TransportBenchOptions& options;
  std::vector<std::string> ops;
  std::int64_t turn = 0;
  std::int64_t rounds = 1;         ///< Wanted of this turn
  double seconds = 1;              ///< After which no further round begins
  PlacementThresholds thresholds;  ///< Those of rank 0 count
  bool survey = false;             ///< Refine them first
  Refusal refusal;                 ///< Why this process cannot; then none does
  std::string master_addr;         ///< Where processes of other machines meet; empty: all are on this one
};

/// Iterations between two probes of the placement.
struct Block {
  double before_ns = -1;
  double after_ns = -1;
  std::vector<double> samples_us;
};

/// One operation at one size by one method.
struct CaseResult {
  std::string op, method;
  std::int64_t bytes = 0, messages = 0;
  std::int64_t payload_bytes = 0;  ///< That a sample moves, for GB/s
  double bus_share = -1;           ///< Of payload_bytes, on the way between ranks; -1: not a collective
  std::int64_t checked = 0, wrong = 0;
  std::string reason;
  std::vector<Block> blocks;
};

struct TurnResult {
  TransportWorld world;
  PlacementThresholds thresholds;
  bool surveyed = false;  ///< Whether they were refined in this turn
  std::vector<CaseResult> cases;
  std::vector<std::string> notes;
};

[[nodiscard]] std::string encode_turn(const TurnResult& result);
[[nodiscard]] TurnResult decode_turn(std::string_view bytes);

/// Class of a block; "" where it is to be dropped, "network" where ranks share no memory to probe.
[[nodiscard]] std::string turn_label(const Block& block, std::int32_t ranks,
                                     const PlacementThresholds& thresholds);

/// Measures on one rank. Collective; the same result on every rank.
/// Errors: on every rank alike what the first rank refused, or Errc::invalid_argument where ranks were given
///         different options.
[[nodiscard]] TurnResult measure_turn(Transport& transport, const TurnRequest& request);

}  // namespace shunt::bench

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <shunt/bench/options.h>
#include <shunt/bench/placement.h>
#include <shunt/bench/timing.h>
#include <shunt/core/error.h>
#include <shunt/transport/transport.h>

#include "memory_plan.h"

namespace shunt::bench {

/// The machine whose steady clock this process reads: a kernel since its start, and a time namespace of it.
[[nodiscard]] std::uint64_t clock_domain();

/// What a process could not do before its ranks met; code is only meant where there is a text.
struct Refusal {
  Errc code = Errc::internal;
  std::string text;
};

/// An option, and a hash of the value that this process was given.
struct OptionHash {
  const char* name;
  std::uint64_t hash;
};

/// Everything that ranks must have been given alike. The same options in the same order in every process.
[[nodiscard]] std::vector<OptionHash> hash_options(const AllToAllBenchOptions& options,
                                                   const std::vector<Point>& points,
                                                   const std::vector<MethodSpec>& specs,
                                                   const ModelDump* dump);

/// Collective. Compares the options of all ranks.
/// Result: empty, or what the first rank that refused said, or the first rank and option that differ from those
///         of rank 0: the same on every rank.
[[nodiscard]] Refusal compare_options(Transport& transport, const std::vector<OptionHash>& options,
                                      const Refusal& refusal, std::chrono::milliseconds deadline);

/// What this rank brings to a point.
struct PointWishes {
  double max_seconds = 10;
  std::int64_t begin_ns = 0;  ///< Of this machine's steady clock
  PlacementThresholds thresholds;
  std::int64_t available_bytes = -1;  ///< On this machine, -1: not known
  Refusal refusal;
  double hopeless_bytes_per_second = 0;
};

/// What all ranks hold to during a point: times of rank 0's clock and choice, methods that can run everywhere.
struct PointTerms {
  double max_seconds = 10;
  std::int64_t begin_ns = 0;
  PlacementThresholds thresholds;
  StampClock clock = StampClock::common;
  const char* unprobed = "single";  ///< Class of blocks without a round trip
  MethodPlan plan;
};

/// Collective. `workload` is null where this rank refuses.
/// Errors: on every rank alike. What the first rank that refused said; Errc::invalid_argument where ranks route
///         other tokens; those of plan_methods().
[[nodiscard]] PointTerms agree_on_point(Transport& transport, const Workload* workload,
                                        const std::vector<MethodSpec>& specs, const MethodSettings& settings,
                                        std::int64_t rounds, const PointWishes& wishes);

/// [R] node of every rank where memory is loaded within nodes only; empty where all memory is.
[[nodiscard]] std::vector<std::int32_t> separate_nodes(const Transport& transport);

}  // namespace shunt::bench

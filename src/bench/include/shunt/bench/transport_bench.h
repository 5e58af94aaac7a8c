#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/bench/alltoall_bench.h>
#include <shunt/bench/timing.h>
#include <shunt/core/record.h>
#include <shunt/core/statistics.h>
#include <shunt/transport/launch.h>

namespace shunt::bench {

/// What `shunt bench transport` was asked to do. Values here are checked by run_transport_bench.
struct TransportBenchOptions {
  std::int64_t min_bytes = 8;
  std::int64_t max_bytes = 4 << 20;
  std::int64_t factor = 2;              ///< Each size is the last one times this
  std::vector<std::string> ops;         ///< Empty: all that the number of ranks allows
  std::int32_t ranks = 0;               ///< 0: those of the launcher, else 2
  std::int32_t nodes = 1;               ///< Virtual nodes; divides ranks
  std::vector<std::string> transports;  ///< Measured in turns; empty: the one that is best here
  std::string provider;                 ///< Of ofi; empty: the best one here
  RankMode mode = RankMode::processes;
  std::int64_t window = 64;     ///< Messages under way at once in put_bandwidth and put_bibandwidth
  std::int64_t warmup = 2;      ///< Untimed iterations at the start of each block
  std::int64_t iterations = 0;  ///< Timed ones per block; 0: as many as fit block_ms
  double block_ms = 4;
  std::int64_t rounds = 10;
  double max_seconds = 60;  ///< Over all transports
  std::uint64_t seed = 1;   ///< Of the order of blocks
  bool check = true;        ///< Every payload, also those that are timed
  std::int64_t deadline_ms = 30'000;
  std::string tsv, jsonl;  ///< Empty: not written
  /// Wraps the transport that is measured, for tests. The ranks' own agreement does not pass through it.
  std::function<std::unique_ptr<Transport>(Transport&)> wrap;
};

/// One operation at one size by one method in one placement class.
struct TransportRow {
  std::string op;
  std::string method;  ///< Name of the transport, or of the baseline
  std::string transport;
  std::int64_t bytes = 0;
  std::int64_t messages = 0;
  std::string placement;
  std::int64_t rounds = 0;
  SampleSummary us{};
  double gb_per_s = 0;
  double busbw_gb_per_s = -1;  ///< -1: not a collective
  std::int64_t wrong = 0;      ///< Payloads that arrived wrong, in all classes together
  std::int64_t checked = 0;    ///< Payloads looked at, likewise
  std::string reason;          ///< The first wrong payload
};

/// One world of ranks, as it turned out.
struct TransportWorld {
  std::string transport;
  std::int32_t ranks = 0;
  std::int32_t nodes = 0;
  std::int32_t pair_peer = -1;  ///< Rank to which rank 0 puts; -1 in a world of one
  std::int32_t pair_node = 0;
  StampClock clock = StampClock::common;  ///< common: times are makespans; else those of the slowest rank
};

struct TransportBenchReport {
  std::vector<TransportWorld> worlds;
  std::vector<TransportRow> rows;  ///< By operation, size, method, class
  std::vector<std::string> notes;  ///< What was not measured, and why
  std::int64_t blocks_kept = 0;
  std::int64_t blocks_dropped = 0;
  bool leads = true;    ///< This process speaks for the job: it prints and writes
  bool failed = false;  ///< Some payload was wrong; the same in all processes of a job
};

/// Parses bytes as nccl-tests does: a whole number, with K, M or G for 1024, 1024^2 or 1024^3.
/// Errors: Errc::invalid_argument with the option, the text and the range.
[[nodiscard]] std::int64_t parse_size(std::string_view option, std::string_view text);

/// Names that `ops` may hold, in the order of the table.
[[nodiscard]] const std::vector<std::string>& transport_operations();

/// min_bytes, min_bytes * factor, … up to max_bytes.
[[nodiscard]] std::vector<std::int64_t> message_sizes(const TransportBenchOptions& options);

/// Measures the operations by message size over each transport.
/// Result:  the same in every process of the job; the one that leads has called `output` and written the files.
/// Errors:  Errc::invalid_argument with option, value and range; Errc::unavailable, Errc::io,
///          Errc::out_of_memory; RankFailure. What was measured before a rank failed is
///          given to output.text and written.
/// Threads: from a single-threaded process (ranks are forked).
[[nodiscard]] TransportBenchReport run_transport_bench(TransportBenchOptions options,
                                                       const std::vector<std::string>& command,
                                                       const BenchOutput& output);

/// The table: header lines and names behind '#', then one line per row; by tabs and with every placement class
/// where `tsv`, else for people and with the class of most rounds alone.
[[nodiscard]] std::string format_transport_table(const TransportBenchReport& report,
                                                 const TransportBenchOptions& options,
                                                 const std::vector<std::string>& command, bool tsv);

/// One record per row, as docs/formats.md "Benchmark results" says.
[[nodiscard]] std::vector<Record> transport_records(const TransportBenchReport& report,
                                                    const TransportBenchOptions& options);

}  // namespace shunt::bench

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/bench/method.h>
#include <shunt/bench/placement.h>
#include <shunt/bench/workload.h>
#include <shunt/core/statistics.h>

namespace shunt::bench {

/// One phase of one method in one placement class, microseconds.
struct PhaseResult {
  std::string placement;
  std::string phase;        ///< dispatch, touch, combine, total or an inner phase
  std::int64_t rounds = 0;  ///< Blocks kept
  SampleSummary us;
};

/// Bytes of one step, all ranks together, that cross to ranks whose memory cannot be loaded. -1: not known.
struct Crossing {
  CrossingPath path = CrossingPath::none;
  std::int64_t row_bytes = -1;             ///< Tokens and scales in dispatch, as the method counted them
  std::int64_t result_bytes = -1;          ///< Expert results, or partial sums, in combine, likewise
  std::int64_t message_bytes = -1;         ///< Everything else of both, likewise
  std::int64_t counted_row_bytes = -1;     ///< What row_bytes must be, counted from the expert choices
  std::int64_t counted_result_bytes = -1;  ///< What result_bytes must be, likewise; dp_size 1 only
  double uniform_row_bytes = -1;           ///< Closed form for uniform routing, and its standard deviation
  double uniform_row_sigma = -1;
};

/// One method at one point.
struct MethodResult {
  std::string name;
  std::string variant;
  MethodKind kind = MethodKind::rows;
  std::string status = "ok";  ///< ok, skipped, failed
  std::string reason;
  bool correct = false;
  std::string result_hash;  ///< Of the combined tokens in rank order, 16 hex digits; empty without a combine
  double cold_us[4] = {0, 0, 0, 0};  ///< First call: dispatch, touch, combine, total
  bool has_dispatch = true;
  bool has_combine = true;
  std::vector<PhaseResult> phases;
  Crossing crossing;
  std::string work;        ///< Method::work() of rank 0
  std::int64_t flops = 0;  ///< Likewise

  /// Null where this phase was not seen in this class.
  [[nodiscard]] const PhaseResult* find(std::string_view placement, std::string_view phase) const;
};

/// Everything measured at one point.
struct PointResult {
  Point point;
  std::vector<MethodResult> methods;  ///< Variants of one name apart
  std::vector<double> round_trips_ns;
  std::int64_t blocks_kept = 0;
  std::int64_t blocks_dropped = 0;
  double seconds = 0;
  std::int64_t dispatch_bytes = 0, touch_bytes = 0, combine_bytes = 0;  ///< Payload of all ranks
  std::int64_t sparse_bytes = 0;  ///< Payload that rank 0 brings to dispatch
  std::int64_t dense_bytes = 0;   ///< The same with every (rank, expert) block padded
  std::int64_t required_rounds = 0;
  std::int64_t nodes = 1;
  std::string transport = "shm";  ///< What "auto" came to
  std::string provider;           ///< Of a network; empty where it has none
  std::string clock = "common";   ///< clock_name() of the times

  /// The method, or for several variants the one with the smallest median of its phase; null where none ran
  /// there.
  [[nodiscard]] const MethodResult* best(std::string_view name, std::string_view placement) const;
  /// Class in which most methods have the required rounds, then with most rounds; "" where nothing was kept.
  [[nodiscard]] std::string main_placement() const;
  /// Classes seen, in the order near, same_l3, far, network, single, device.
  [[nodiscard]] std::vector<std::string> placements() const;
};

/// Byte strings for the way from rank 0 to the process that started it.
[[nodiscard]] std::string encode_result(const PointResult& result);
/// `point` is not transported: the reader knows it.
[[nodiscard]] PointResult decode_result(std::string_view bytes, const Point& point);

}  // namespace shunt::bench

#pragma once

#include <functional>
#include <string>
#include <vector>

#include <shunt/bench/options.h>
#include <shunt/bench/results.h>
#include <shunt/core/error.h>

namespace shunt::bench {

/// Where the benchmark speaks while it runs. Either may be empty.
struct BenchOutput {
  std::function<void(const std::string&)> text;  ///< Tables and sentences
  /// Share done in [0, 1] and what is running; called from rank 0's process.
  std::function<void(double share, const std::string& what)> progress;
};

/// A rank ended before its point was measured; names the point and the rank.
class RankFailure : public Error {
 public:
  RankFailure(Errc code, const std::string& message, int status) : Error(code, message), status_(status) {}
  /// What the program should end with: the rank's own status, 128 + signal where only signals ended ranks.
  [[nodiscard]] int status() const noexcept { return status_; }

 private:
  int status_;
};

struct AllToAllBenchReport {
  std::vector<PointResult> points;
  std::string device = "cpu";        ///< cpu or cuda: where it ran
  std::string note;                  ///< Why it is not the device asked for; empty where it is
  std::string tsv_path, jsonl_path;  ///< Empty where no file was written
  bool failed = false;               ///< Some method delivered wrong data
  bool leads = true;  ///< Whether this process speaks for the job; others have written and said nothing
  int status = 0;  ///< What the program should end with: of a wrong result, or of what rank 0's process threw
};

/// Measures every point with every method, on ranks of this machine or, where the environment says so, as part of a
/// job of several processes; see detect_launch(). Of those only the one that leads speaks and writes. Each point is one world of ranks; its methods run interleaved in
/// rounds and every payload is checked. Both files are made first, and each point is on disk before the next
/// begins: an error leaves the points before it there.
/// Errors:  Errc::invalid_argument, Errc::unavailable (also where none of the methods asked for can run),
///          Errc::io, Errc::out_of_memory (no method of a point fits) before a point is measured; RankFailure.
///          In a job what one process refuses before the first point is thrown by the one that leads, with the
///          rank; the others return the status.
/// Threads: from a single-threaded process (ranks are forked).
[[nodiscard]] AllToAllBenchReport run_alltoall_bench(AllToAllBenchOptions options,
                                                     const std::vector<std::string>& command,
                                                     const BenchOutput& output);

}  // namespace shunt::bench

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <shunt/transport/launch.h>

namespace shunt::bench {

/// The ranks that a benchmark runs on, however this process was started.
class Job {
 public:
  /// `explicit_ranks` and `get` as in detect_launch().
  Job(std::int32_t explicit_ranks, const std::function<const char*(const char*)>& get);
  ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  /// Whether this process starts all ranks itself, so that there is nobody to agree with.
  [[nodiscard]] bool local() const noexcept { return launch_.way == LaunchWay::local; }
  [[nodiscard]] bool leads() const noexcept;          ///< See LaunchSession
  [[nodiscard]] std::int32_t ranks() const noexcept;  ///< Of the job; 0 where local()
  /// Whether this rank hands its results to its process: the first one that the process is or starts.
  [[nodiscard]] bool reports(const World& world) const noexcept;
  /// Processes of the job on this machine that each hold what a process holds; 1 where that is not known.
  [[nodiscard]] std::int32_t processes_here() const noexcept { return processes_here_; }

  /// Errors: Errc::invalid_argument where virtual nodes are asked for and the ranks do not start here.
  void check_nodes(std::int32_t nodes) const;

  std::vector<RankOutcome> run(const LaunchOptions& options, const std::function<int(Transport&)>& body);

 private:
  Launch launch_;
  std::int32_t processes_here_ = 1;
  std::unique_ptr<LaunchSession> session_;
};

}  // namespace shunt::bench

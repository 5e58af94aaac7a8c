#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <vector>

namespace shunt::bench {

/// A program that works for this rank. It dies with the thread that started it, and what it prints is kept.
/// Threads: one at a time; the one that made it outlives it.
class HelperProcess {
 public:
  /// Starts `command`, found along PATH. Its descriptor 0 is a socket from this process, 1 and 2 are kept for
  /// last_lines(), 3 is `memory` where that is not negative; it has no others. It may run on the CPUs this
  /// thread may run on.
  /// Errors: Errc::unavailable where it cannot be started at all. A program that is not there ends with status
  ///         127.
  HelperProcess(const std::vector<std::string>& command, int memory);
  /// Closes its input, gives it a second to end, then kills it.
  ~HelperProcess();
  HelperProcess(const HelperProcess&) = delete;
  HelperProcess& operator=(const HelperProcess&) = delete;

  /// Sends one byte to its input. A program that has ended is none of this function's business.
  void wake() const noexcept;
  /// Whether it has ended.
  [[nodiscard]] bool ended() noexcept;
  /// Waits until it has ended, at most `limit`. Returns whether it has.
  bool wait(std::chrono::milliseconds limit);
  void kill() noexcept;
  /// "ended with status 3", "was killed by signal 9 (Killed)" or "is running".
  [[nodiscard]] std::string state() noexcept;
  /// Exit status, or 128 + signal; -1 while it runs.
  [[nodiscard]] int status() noexcept;
  /// The last lines it printed that are not empty, joined by " | "; at most some hundred bytes.
  [[nodiscard]] std::string last_lines() const;

 private:
  pid_t process_ = -1;
  int input_ = -1;
  int text_ = -1;
  int status_ = 0;  ///< As waitpid gives it
  bool ended_ = false;
};

}  // namespace shunt::bench

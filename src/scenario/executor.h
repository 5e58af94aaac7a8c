#pragma once

#include <chrono>
#include <string>

#include <shunt/scenario/plan.h>

namespace shunt::scenario {

/// How a run that was started stands.
struct Progress {
  bool running = false;  ///< It has begun (and not only waits in a queue).
  bool ended = false;
  std::int64_t exit_code = 0;
  std::string failure;  ///< empty: it ended well
};

/// Starts runs and watches them.
class Executor {
 public:
  virtual ~Executor() = default;
  /// Errors: shunt::Error where it cannot be started.
  virtual void start(std::size_t run, const Case& one, const TestEntry& entry, const std::string& folder) = 0;
  virtual Progress poll(std::size_t run) = 0;
  /// Asks a run to end, or with `hard` ends it.
  virtual void stop(std::size_t run, bool hard) = 0;
  /// Pause between two looks.
  [[nodiscard]] virtual std::chrono::milliseconds interval() const = 0;
  /// Whether it keeps time limits itself.
  [[nodiscard]] virtual bool limits_time() const = 0;
  /// How many runs may be under way.
  [[nodiscard]] virtual std::int64_t width() const = 0;
};

}  // namespace shunt::scenario

#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

namespace shunt::python {

/// A world outside of a call: the library gives a rank its transport for as long as a function runs, so that function
/// stands still on a thread of its own until this object goes.
class Parked {
 public:
  using Body = std::function<int(Transport&)>;
  using Run = std::function<std::vector<RankOutcome>(const Body&)>;
  /// Calls `run` on the other thread and waits until its body has the transport.
  /// Errors: those that `run` throws or reports; then nothing stays behind.
  explicit Parked(Run run);
  ~Parked();  ///< Ends the world; waits for nothing but the thread.
  Parked(const Parked&) = delete;
  Parked& operator=(const Parked&) = delete;
  [[nodiscard]] Transport& transport() const noexcept { return *transport_; }
  [[nodiscard]] int device() const noexcept { return device_; }  ///< As device_of(transport())
  /// When this object goes, the world ends with this error, as where a rank's function throws: then its peers learn
  /// that it failed.
  void fail_with(Errc code, std::string message);

 private:
  void park(const Run& run) noexcept;

  std::mutex mutex_;
  std::condition_variable changed_;
  Transport* transport_ = nullptr;
  int device_ = -1;
  bool leave_ = false;
  bool over_ = false;
  RankOutcome failure_;          ///< Of the run
  std::optional<Error> reason_;  ///< What the body throws at its end
  std::thread thread_;
};

}  // namespace shunt::python

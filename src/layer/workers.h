#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace shunt::detail {

/// Threads of one layer, the caller's among them. What a task computes must not depend on who runs it.
/// Threads: run() from one thread at a time.
class Workers {
 public:
  explicit Workers(int threads);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  [[nodiscard]] int threads() const noexcept { return static_cast<int>(threads_.size()) + 1; }

  /// Calls task(i, worker) for each i below `tasks`, begun in this order, and returns when all have ended. `worker` is
  /// below threads(), and no two tasks of one worker overlap.
  /// Errors: the first that a task threw, after all have ended; tasks that had not begun are left out.
  void run(std::int64_t tasks, const std::function<void(std::int64_t task, int worker)>& task);

 private:
  void serve(int worker);
  void take(int worker);

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable begin_, end_;
  const std::function<void(std::int64_t, int)>* task_ = nullptr;
  std::int64_t tasks_ = 0, next_ = 0;
  std::uint64_t round_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
};

}  // namespace shunt::detail

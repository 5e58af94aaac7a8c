#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace shunt::bench {

/// Threads that do one thing together, each a part of it. The others sleep between two calls, so that they take nothing
/// from what is measured in turn with them.
/// Threads: one caller at a time, which does part 0 itself.
class Team {
 public:
  /// `size` threads with the caller, at least 1.
  explicit Team(std::int32_t size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  [[nodiscard]] std::int32_t size() const noexcept { return static_cast<std::int32_t>(others_.size()) + 1; }
  /// Calls body(part) for each part in [0, size()), all at once, and returns when all have ended. `body` must not throw.
  void run(const std::function<void(std::int32_t)>& body);
  /// The same with consecutive shares [from, to) of `count` things.
  void share(std::int64_t count,
             const std::function<void(std::int32_t part, std::int64_t from, std::int64_t to)>& body);

 private:
  void work(std::int32_t part);

  const std::function<void(std::int32_t)>* body_ =
      nullptr;  ///< Written before `call_`, read after it; null: end
  std::atomic<std::uint32_t> call_{0};
  std::atomic<std::int32_t> busy_{0};
  std::vector<std::thread> others_;
};

}  // namespace shunt::bench

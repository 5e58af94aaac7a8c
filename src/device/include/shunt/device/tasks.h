#pragma once

#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>

namespace shunt::device {

/// Numbers from `first` on, `step` apart, below `end`, for a range-based loop: what falls to one of several that share
/// the work.
class Strided {
 public:
  struct End {
    std::int64_t end;
  };
  struct Iterator {
    std::int64_t at;
    std::int64_t step;
    SHUNT_DEVICE std::int64_t operator*() const { return at; }
    SHUNT_DEVICE Iterator& operator++() {
      at += step;
      return *this;
    }
    SHUNT_DEVICE bool operator!=(const End& last) const { return at < last.end; }
  };

  SHUNT_DEVICE Strided(std::int64_t first, std::int64_t step, std::int64_t end)
      : first_(first), step_(step), end_(end) {}
  [[nodiscard]] SHUNT_DEVICE Iterator begin() const { return {first_, step_}; }
  [[nodiscard]] SHUNT_DEVICE End end() const { return {end_}; }

 private:
  std::int64_t first_;
  std::int64_t step_;
  std::int64_t end_;
};

/// Which of `tasks` fall to this warp, where all warps of the grid share them. Equal for all lanes.
template <class Context>
[[nodiscard]] SHUNT_DEVICE Strided tasks_of_warp(const Context& ctx, std::int64_t tasks) {
  const std::int32_t warps = ctx.num_threads() / kWarpSize;
  return {static_cast<std::int64_t>(ctx.block()) * warps + ctx.warp(),
          static_cast<std::int64_t>(ctx.num_blocks()) * warps, tasks};
}

/// Which of `items` fall to this thread, where all threads of the grid share them.
template <class Context>
[[nodiscard]] SHUNT_DEVICE Strided items_of_thread(const Context& ctx, std::int64_t items) {
  return {static_cast<std::int64_t>(ctx.block()) * ctx.num_threads() + ctx.thread(),
          static_cast<std::int64_t>(ctx.num_blocks()) * ctx.num_threads(), items};
}

}  // namespace shunt::device

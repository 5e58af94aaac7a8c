#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>

#include "programs/bench_point.h"

namespace shunt {
class Transport;
}

namespace shunt::programs {

enum class Call : std::uint8_t { dispatch_send, dispatch_recv, combine_send, combine_recv };

/// One rank's object and inputs at one point. Steps are made of the four calls in their order.
class BenchStep {
 public:
  virtual ~BenchStep() = default;
  BenchStep(const BenchStep&) = delete;
  BenchStep& operator=(const BenchStep&) = delete;
  /// Makes the calls one after the other and returns how long they took, in microseconds.
  virtual double time_us(std::initializer_list<Call> calls) = 0;

 protected:
  BenchStep() = default;
};

/// Collective.
[[nodiscard]] std::unique_ptr<BenchStep> make_cpu_step(Transport& transport, const Point& point,
                                                       const Options& options);
/// Collective. Times are those of CUDA events around the calls on the rank's stream; a call returns when the stream has
/// passed it. Errors: also Errc::unavailable in a build without CUDA.
[[nodiscard]] std::unique_ptr<BenchStep> make_gpu_step(Transport& transport, const Point& point,
                                                       const Options& options);
/// Why make_gpu_step() does nothing in this build; empty where it does.
[[nodiscard]] std::string gpu_steps_missing();

}  // namespace shunt::programs

#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include <shunt/alltoall/config.h>

#include "shared_memory.h"

namespace shunt::bench {

/// What of an AllToAllConfig makes one method differ from another.
struct ShuntWay {
  Delivery delivery = Delivery::rows;
  Path path = Path::automatic;
  bool presum = false;
};

/// A method whose halves can be begun and finished apart, with other work in between.
class SplitMethod : public Method {
 public:
  virtual void dispatch_send() = 0;
  virtual void dispatch_recv() = 0;
  virtual void combine_send() = 0;
  virtual void combine_recv() = 0;
  /// Runs `work`, which has one time: on a GPU it puts kernels on stream(), and this waits for them and reads the
  /// device's clock, or replays what it put there before. `phase` tells such work apart, from 0 to kMostPhases - 1.
  virtual void run_phase(std::int32_t phase, const std::function<void()>& work) {
    static_cast<void>(phase);
    work();
  }
  static constexpr std::int32_t kMostPhases = 16;
  /// The cudaStream_t on which the halves run; null on the CPU.
  [[nodiscard]] virtual void* stream() const noexcept { return nullptr; }
  void dispatch() final {
    run_phase(0, [this] {
      dispatch_send();
      dispatch_recv();
    });
  }
  void combine() final {
    run_phase(1, [this] {
      combine_send();
      combine_recv();
    });
  }
};

/// How the methods set the library up for a point.
[[nodiscard]] AllToAllConfig alltoall_config(const Workload& workload, const MethodSettings& settings,
                                             const ShuntWay& way);

/// The library itself. Tokens lie in its token buffer, put there before anything is timed.
/// Errors: Errc::unavailable for partial sums with replicas.
[[nodiscard]] std::unique_ptr<SplitMethod> make_shunt_method(const MethodContext& context,
                                                             const ShuntWay& way);
/// A whole step with zero tokens: what announcing and waiting cost.
[[nodiscard]] std::unique_ptr<Method> make_empty_method(const MethodContext& context);
/// 0 where make_shunt_method refuses.
[[nodiscard]] std::int64_t shunt_bytes(const Workload& workload, const MethodSettings& settings,
                                       const ShuntWay& way);

}  // namespace shunt::bench

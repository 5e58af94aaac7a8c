#pragma once

#include <cstdint>

#include "context.h"
#include "machine.h"

namespace shunt::emulator {

/// What a stream of one rank's GPU is elsewhere: steps of a module that are templates over a launcher run on it.
/// Kernels only run when the machine does.
class Launcher {
 public:
  explicit Launcher(Machine& machine, std::int32_t rank = 0) : machine_(&machine), rank_(rank) {}

  template <class Kernel>
  void launch(const LaunchShape& shape, const typename Kernel::Args& args) {
    machine_->launch(rank_, Kernel::kName, shape, [args](Context& context) { Kernel::run(context, args); });
  }
  [[nodiscard]] std::int32_t processors() const { return machine_->processors(); }
  template <class Kernel>
  [[nodiscard]] static std::int32_t blocks_per_processor(std::int32_t /*shared_bytes*/) {
    return 8;
  }

 private:
  Machine* machine_;
  std::int32_t rank_;
};

}  // namespace shunt::emulator

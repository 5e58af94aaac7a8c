// GPU steps in a build that has none.
#include <shunt/core/error.h>

#include "programs/bench_step.h"

namespace shunt::programs {

std::string gpu_steps_missing() {
  return "this build has no CUDA";
}

std::unique_ptr<BenchStep> make_gpu_step(Transport&, const Point&, const Options&) {
  throw Error(Errc::unavailable, gpu_steps_missing());
}

}  // namespace shunt::programs

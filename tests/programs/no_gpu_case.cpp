// GPU cases in a build that has none.
#include <shunt/core/error.h>

#include "programs/gpu_case.h"

namespace shunt::programs {

std::string gpu_cases_missing() {
  return "this build has no CUDA";
}

void run_gpu_case(Transport&, const sweep::SweepCase&) {
  throw Error(Errc::unavailable, gpu_cases_missing());
}

}  // namespace shunt::programs

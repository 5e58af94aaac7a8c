#include <shunt/pack/cuda.h>

#include "runtime.h"

namespace shunt::bench {

GpuRuntime cuda_runtime(const GpuTerms& /*terms*/) {
  GpuRuntime runtime;
  runtime.unavailable = cuda::unavailable_reason();
  return runtime;
}

std::int32_t gpu_count() {
  return 0;
}

}  // namespace shunt::bench

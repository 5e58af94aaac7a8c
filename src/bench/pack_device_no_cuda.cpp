#include <shunt/core/error.h>

#include "pack_device.h"

namespace shunt::bench {

std::unique_ptr<PackDevice> make_cuda_pack_device(cuda::LaunchLimit /*limit*/, cuda::Stream /*stream*/) {
  throw Error(Errc::unavailable, "CUDA kernels cannot run: " + cuda::unavailable_reason());
}

}  // namespace shunt::bench

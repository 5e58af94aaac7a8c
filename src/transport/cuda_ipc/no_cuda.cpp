// What stands for CUDA in a build without it.
#include <shunt/core/error.h>

#include "cuda_ipc/cuda_api.h"

namespace shunt::cuda_ipc {

std::string cuda_unavailable_reason() {
  return "this build has no CUDA (SHUNT_CUDA=OFF, or no CUDA compiler was found)";
}

std::unique_ptr<DeviceApi> make_cuda_api(const std::vector<std::int32_t>&, std::int32_t) {
  throw Error(Errc::unavailable, "transport cuda_ipc: " + cuda_unavailable_reason());
}

}  // namespace shunt::cuda_ipc

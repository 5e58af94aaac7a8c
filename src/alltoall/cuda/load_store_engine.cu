// The engine on CUDA streams whose peers are stored to.
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include <shunt/device/cuda_context.h>

#include "cuda_device.h"
#include "engine.h"
#include "net.h"
#include "step_engine.h"

namespace shunt::cuda::detail {
namespace {

/// Peers' parts by address.
class LoadStoreDevice : public CudaDevice {
 public:
  static LoadStoreNet connect(const SymmetricBuffer& /*memory*/, std::span<std::byte* const> /*peers*/,
                              const Frame& frame) {
    return {frame.own<std::byte*>(frame.at.bases_at), frame.at.signals_at, frame.rank};
  }
};

}  // namespace

std::unique_ptr<Engine> make_load_store_engine() {
  return std::make_unique<StepEngine<LoadStoreNet, LoadStoreDevice>>(std::make_unique<LoadStoreDevice>());
}

}  // namespace shunt::cuda::detail

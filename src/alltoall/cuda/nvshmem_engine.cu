// The engine whose kernels put with NVSHMEM. Part of the plugin.
#include <memory>
#include <span>

#include <shunt/device/cuda_context.h>

#include "cuda_device.h"
#include "engine.h"
#include "heap/plugin.h"
#include "nvshmem_net.h"
#include "step_engine.h"

namespace shunt::cuda::detail {
namespace {

static_assert(PutNet<NvshmemNet, device::CudaContext>);

class NvshmemDevice : public CudaDevice {
 public:
  static NvshmemNet connect(const SymmetricBuffer& /*memory*/, std::span<std::byte* const> /*peers*/,
                            const Frame& frame) {
    return {frame.local, frame.at.signals_at};
  }
};

}  // namespace

void* make_nvshmem_engine(heap::SymmetricHeap& /*heap*/, const World& /*world*/) {
  return static_cast<Engine*>(
      std::make_unique<StepEngine<NvshmemNet, NvshmemDevice>>(std::make_unique<NvshmemDevice>()).release());
}

}  // namespace shunt::cuda::detail

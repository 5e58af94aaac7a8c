// The engine whose kernels put with NCCL's GIN and store to the LSA team. Part of the plugin.
#include <cuda_runtime.h>

#include <memory>
#include <span>

#include <shunt/device/cuda_context.h>

#include "cuda_device.h"
#include "engine.h"
#include "heap/plugin.h"
#include "nccl/nccl_heap.h"
#include "nccl_net.h"
#include "step_engine.h"

namespace shunt::cuda::detail {
namespace {

static_assert(PutNet<NcclNet, device::CudaContext>);

class NcclDevice : public CudaDevice {
 public:
  explicit NcclDevice(nccl::NcclHeap& heap) : heap_(heap) {}
  ~NcclDevice() { disconnect(); }
  NcclDevice(const NcclDevice&) = delete;
  NcclDevice& operator=(const NcclDevice&) = delete;

  /// Collective, as the construction of an object is. A communicator for kernels of its own, so that its numbered signals
  /// begin at 0.
  NcclNet connect(const SymmetricBuffer& memory, std::span<std::byte* const> /*peers*/, const Frame& frame) {
    disconnect();
    // The kernels' signals are numbered, and each stands for its own put alone.
    const ncclDevCommRequirements needed =
        nccl::requirements(kSignalKinds * frame.num_ranks, true, /*words=*/false);
    nccl::require("ncclDevCommCreate", ncclDevCommCreate(heap_.comm(), &needed, &comm_), heap_.comm());
    connected_ = true;
    require("cudaMalloc", cudaMalloc(&on_device_, sizeof comm_));
    upload(on_device_, &comm_, sizeof comm_);
    return {.comm = static_cast<const ncclDevComm*>(on_device_),
            .window = heap_.window(memory.id),
            .bases = frame.own<std::byte*>(frame.at.bases_at),
            .local = frame.local,
            .signals_at = frame.at.signals_at,
            .num_ranks = frame.num_ranks};
  }

 private:
  void disconnect() {
    static_cast<void>(cudaFree(on_device_));
    on_device_ = nullptr;
    // Where the transport has gone first, with its communicator, this went with it.
    if (connected_ && heap_.comm() != nullptr) static_cast<void>(ncclDevCommDestroy(heap_.comm(), &comm_));
    connected_ = false;
  }

  nccl::NcclHeap& heap_;
  ncclDevComm comm_{};
  void* on_device_ = nullptr;
  bool connected_ = false;
};

}  // namespace

void* make_nccl_engine(heap::SymmetricHeap& heap, const World& /*world*/) {
  auto& own = static_cast<nccl::NcclHeap&>(heap);
  return static_cast<Engine*>(
      std::make_unique<StepEngine<NcclNet, NcclDevice>>(std::make_unique<NcclDevice>(own)).release());
}

}  // namespace shunt::cuda::detail

// libshunt_nccl.so: all that touches NCCL's interface for kernels.
#include "heap/plugin.h"
#include "nccl/nccl_heap.h"

namespace shunt::cuda::detail {
void* make_nccl_engine(heap::SymmetricHeap& heap, const World& world);
}  // namespace shunt::cuda::detail

namespace {

shunt::heap::SymmetricHeap* open(const shunt::heap::HeapOptions& options) {
  return new shunt::nccl::NcclHeap(options);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const shunt::heap::PluginTable* shunt_heap_plugin() {
  static const shunt::heap::PluginTable table{.build = shunt::heap::kPluginBuild,
                                              .one_rank_per_process = false,
                                              .sharing = shunt::heap::GpuSharing::refused,
                                              .description = shunt::nccl::description,
                                              .preflight = shunt::nccl::preflight,
                                              .unique_id = shunt::nccl::unique_id,
                                              .open = open,
                                              .make_engine = shunt::cuda::detail::make_nccl_engine};
  return &table;
}

// libshunt_nvshmem.so: all that touches NVSHMEM, linked with its device library in one step.
#include "heap/plugin.h"
#include "nvshmem/nvshmem_heap.h"

namespace shunt::cuda::detail {
void* make_nvshmem_engine(heap::SymmetricHeap& heap, const World& world);
}  // namespace shunt::cuda::detail

namespace {

shunt::heap::SymmetricHeap* open(const shunt::heap::HeapOptions& options) {
  return new shunt::nvshmem::NvshmemHeap(options);
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const shunt::heap::PluginTable* shunt_heap_plugin() {
  static const shunt::heap::PluginTable table{.build = shunt::heap::kPluginBuild,
                                              .one_rank_per_process = true,
                                              .sharing = shunt::heap::GpuSharing::by_mps,
                                              .description = shunt::nvshmem::description,
                                              .preflight = shunt::nvshmem::preflight,
                                              .unique_id = shunt::nvshmem::unique_id,
                                              .open = open,
                                              .make_engine = shunt::cuda::detail::make_nvshmem_engine};
  return &table;
}

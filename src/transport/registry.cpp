#include <shunt/transport/launch.h>

#include "cuda_ipc/cuda_api.h"
#include "heap/plugin.h"
#include "net/networks.h"
#include "shm/segment.h"

namespace shunt {
namespace {

[[nodiscard]] TransportInfo entry(const char* name, std::string missing, std::string description) {
  const bool available = missing.empty();
  return {.name = name,
          .available = available,
          .reason = available ? std::move(description) : std::move(missing)};
}

}  // namespace

std::vector<TransportInfo> transport_registry() {
  std::string no_ofi = ofi_unavailable_reason();
  std::string ofi = no_ofi.empty() ? ofi_description() : std::string{};
  // Asked only here, in a process of its own: it takes longer than a start of ranks should wait.
  if (no_ofi.empty() && !ofi_has_provider()) no_ofi = ofi + " on this machine";
  return {
      entry("shm", shm::Segment::unavailable_reason(),
            "processes or threads of one machine over shared memory (memfd)"),
      entry("mpi", mpi_unavailable_reason(), mpi_description() + "; ranks are started by mpirun or srun"),
      entry("ofi", std::move(no_ofi), std::move(ofi)),
      entry("cuda_ipc", cuda_ipc::cuda_unavailable_reason_from_child(),
            "GPU memory that processes or threads of one machine load and store (peer access, CUDA IPC)"),
      entry("nvshmem", heap::unavailable_reason_from_child("nvshmem"),
            heap::description_from_child("nvshmem") + ": symmetric GPU memory of several nodes; kernels put"),
      entry("nccl", heap::unavailable_reason_from_child("nccl"),
            heap::description_from_child("nccl") +
                ": windows in GPU memory; kernels load and store, and put by GIN")};
}

}  // namespace shunt

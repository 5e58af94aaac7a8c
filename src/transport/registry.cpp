#include <shunt/transport/launch.h>

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
  return {entry("shm", shm::Segment::unavailable_reason(),
                "processes or threads of one machine over shared memory (memfd)"),
          entry("mpi", mpi_unavailable_reason(), mpi_description() + "; ranks are started by mpirun or srun"),
          entry("ofi", ofi_unavailable_reason(), ofi_description())};
}

}  // namespace shunt

#include <shunt/transport/launch.h>

#include "shm/segment.h"

namespace shunt {

std::vector<TransportInfo> transport_registry() {
  std::string reason = shm::Segment::unavailable_reason();
  const bool available = reason.empty();
  if (available) reason = "processes or threads of one machine over shared memory (memfd)";
  return {{.name = "shm", .available = available, .reason = std::move(reason)}};
}

}  // namespace shunt

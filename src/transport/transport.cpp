#include <shunt/transport/transport.h>

#include "signal_collectives.h"

namespace shunt {

std::unique_ptr<Collectives> Transport::make_collectives(std::int64_t max_bytes, Deadline deadline) {
  return std::make_unique<SignalCollectives>(*this, max_bytes, deadline);
}

}  // namespace shunt

#include <shunt/transport/transport.h>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "signal_collectives.h"

namespace shunt {

void Transport::exclude(std::span<const std::int32_t>) {
  throw Error(Errc::unavailable,
              fmt::format("rank {}: transport {} cannot go on without a rank", world_.rank, name()));
}

std::unique_ptr<Collectives> Transport::make_collectives(std::int64_t max_bytes, Deadline deadline) {
  return std::make_unique<SignalCollectives>(host(), max_bytes, deadline);
}

}  // namespace shunt

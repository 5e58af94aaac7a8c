#include "signal_word.h"

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt {

void throw_outside(const World& world, const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                   std::int64_t bytes) {
  throw Error(
      Errc::invalid_argument,
      fmt::format("rank {}: {} bytes at offset {} of rank {}, but buffer {} has {} bytes on ranks 0 to {}{}",
                  world.rank, bytes, offset, peer, buffer.id, buffer.bytes, world.size - 1,
                  offset % 8 == 0 ? "" : "; signal words lie at multiples of 8 bytes"));
}

}  // namespace shunt

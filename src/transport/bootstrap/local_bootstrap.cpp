#include "bootstrap/local_bootstrap.h"

#include <algorithm>
#include <cstring>

namespace shunt {
namespace {

/// Of one rank's piece that is in the memory at once, for each of two parities.
constexpr std::int64_t kPiece = 4096;

}  // namespace

LocalBootstrap::LocalBootstrap(shm::Segment& segment, const World& world, bool processes, bool oversubscribed,
                               Deadline deadline)
    : meeting_(segment, world, processes, oversubscribed, deadline),
      memory_(meeting_.allocate(world.size * kSignalStride + 2 * kPiece, "start", deadline)) {}

/// Each rank shows its piece in its own memory, in two places used in turn: who shows its next but one piece has
/// heard that all have shown the next one, and so have read this one.
void LocalBootstrap::allgather(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                               const char* phase) {
  const std::int32_t self = rank();
  const auto* from = static_cast<const std::byte*>(mine);
  auto* to = static_cast<std::byte*>(all);
  for (std::int64_t at = 0; at < bytes; at += kPiece) {
    const auto piece = static_cast<std::size_t>(std::min(kPiece, bytes - at));
    ++gathered_;
    const std::int64_t place = size() * kSignalStride + static_cast<std::int64_t>(gathered_ % 2) * kPiece;
    std::memcpy(memory_.local + place, from + at, piece);
    for (std::int32_t peer = 0; peer < size(); ++peer)
      meeting_.signal(memory_, peer, self * kSignalStride, gathered_);
    for (std::int32_t peer = 0; peer < size(); ++peer) {
      static_cast<void>(meeting_.wait_signal(memory_, peer * kSignalStride, gathered_, deadline,
                                             {.phase = phase, .peer = peer}));
      std::memcpy(to + peer * bytes + at, meeting_.peer_pointer(memory_, peer) + place, piece);
    }
  }
}

}  // namespace shunt

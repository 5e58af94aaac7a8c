#pragma once

#include <memory>

#include <shunt/transport/collectives.h>

#include "bootstrap.h"
#include "shm/shm_transport.h"

namespace shunt {

/// Ranks that one parent started on this machine, which meet in memory that all of them share, also where they
/// then take part as ranks of several nodes.
class LocalBootstrap final : public Bootstrap {
 public:
  /// Collective. `segment` has a slot for every rank and must outlive this.
  LocalBootstrap(shm::Segment& segment, const World& world, bool processes, bool oversubscribed,
                 Deadline deadline);

  [[nodiscard]] std::int32_t rank() const noexcept override { return meeting_.world().rank; }
  [[nodiscard]] std::int32_t size() const noexcept override { return meeting_.world().size; }
  void allgather(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                 const char* phase) override;
  [[nodiscard]] std::int32_t lost() noexcept override { return meeting_.waiter().find_ended(); }
  void exclude(std::span<const std::int32_t> ranks) override { meeting_.exclude(ranks); }

 private:
  shm::ShmTransport meeting_;
  SymmetricBuffer memory_;
  std::uint64_t gathered_ = 0;
};

}  // namespace shunt

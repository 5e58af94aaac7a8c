#pragma once

#include <cstdint>
#include <span>
#include <string>

#include <shunt/transport/transport.h>

namespace shunt {

/// How the ranks of a world find each other before they share memory: by an MPI communicator, by TCP to rank 0,
/// or through the shared memory of forked ranks.
/// Threads: one rank's object is used by one thread at a time.
class Bootstrap {
 public:
  virtual ~Bootstrap() = default;
  [[nodiscard]] virtual std::int32_t rank() const noexcept = 0;
  [[nodiscard]] virtual std::int32_t size() const noexcept = 0;
  /// Collective. all [R, bytes]: what every rank brings, in rank order; `phase` names it in errors.
  virtual void allgather(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                         const char* phase) = 0;
  /// A rank that is known to be gone and not excluded, or -1. Cheap enough for a wait that has begun to sleep.
  [[nodiscard]] virtual std::int32_t lost() noexcept { return -1; }
  /// These ranks are lost() no more.
  virtual void exclude(std::span<const std::int32_t>) {}
  /// Numeric IP address of this rank on the network where the ranks met, so that other networks bind to it
  /// and to no other; empty where they met otherwise.
  [[nodiscard]] virtual std::string local_address() const { return {}; }
};

}  // namespace shunt

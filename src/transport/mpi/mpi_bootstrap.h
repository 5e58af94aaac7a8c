#pragma once

#include "bootstrap.h"
#include "mpi/mpi_call.h"

namespace shunt::mpi {

/// Ranks of an MPI job meet through a communicator. MPI has begun and outlives this.
class MpiBootstrap final : public Bootstrap {
 public:
  /// Collective; does not wait.
  MpiBootstrap() = default;
  ~MpiBootstrap() override;

  [[nodiscard]] std::int32_t rank() const noexcept override { return comm_.rank(); }
  [[nodiscard]] std::int32_t size() const noexcept override { return comm_.size(); }
  void allgather(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                 const char* phase) override;

 private:
  Communicator comm_;
};

}  // namespace shunt::mpi

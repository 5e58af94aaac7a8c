#include "mpi/mpi_bootstrap.h"

#include <fmt/format.h>

#include <exception>
#include <limits>

#include <shunt/core/error.h>

namespace shunt::mpi {
namespace {

/// Ranks of a run that went well end at about the same time.
constexpr std::chrono::seconds kEnd{10};

}  // namespace

MpiBootstrap::~MpiBootstrap() {
  // Where this rank fails the others may never come.
  if (std::uncaught_exceptions() == 0) static_cast<void>(comm_.retire(Clock::now() + kEnd));
}

void MpiBootstrap::allgather(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                             const char* phase) {
  if (bytes < 0 || bytes > std::numeric_limits<int>::max()) {
    throw Error(Errc::invalid_argument,
                fmt::format("rank {}: {} bytes to gather at the start; 0 to {} are allowed", rank(), bytes,
                            std::numeric_limits<int>::max()));
  }
  comm_.join(deadline, phase);
  MPI_Request request = MPI_REQUEST_NULL;
  const int count = static_cast<int>(bytes);
  check(MPI_Iallgather(mine, count, MPI_BYTE, all, count, MPI_BYTE, comm_.get(), &request), rank(),
        "MPI_Iallgather");
  comm_.wait(request, deadline, phase);
}

}  // namespace shunt::mpi

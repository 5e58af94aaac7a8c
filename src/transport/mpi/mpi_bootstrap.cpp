#include "mpi/mpi_bootstrap.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <vector>

#include <shunt/core/error.h>

#include "net/networks.h"

namespace shunt::mpi {
namespace {

/// Ranks of a run that went well end at about the same time.
constexpr std::chrono::seconds kEnd{10};

}  // namespace

MpiBootstrap::~MpiBootstrap() {
  // Where this rank fails the others may never come.
  if (std::uncaught_exceptions() > 0 || comm_.retire(Clock::now() + kEnd)) return;
  // MPI_Finalize would wait for the others without a deadline.
  std::fprintf(stderr, "shunt: rank %d ends the job: not all ranks came to its end within %d s\n", rank(),
               static_cast<int>(kEnd.count()));
  std::fflush(nullptr);
  mpi_abort(1);
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
  // Not the caller's memory: where the wait fails MPI may write to it later, and it is left to MPI.
  const auto piece = static_cast<std::size_t>(bytes);
  const std::size_t whole = piece * static_cast<std::size_t>(size());
  auto memory = std::make_unique<std::vector<std::byte>>(piece + whole + 1);
  std::byte* const own = memory->data();
  std::byte* const gathered = own + piece;
  if (piece > 0) std::memcpy(own, mine, piece);
  try {
    check(MPI_Iallgather(own, count, MPI_BYTE, gathered, count, MPI_BYTE, comm_.get(), &request), rank(),
          "MPI_Iallgather");
    comm_.wait(request, deadline, phase);
  } catch (...) {
    static_cast<void>(memory.release());
    throw;
  }
  if (whole > 0) std::memcpy(all, gathered, whole);
}

}  // namespace shunt::mpi

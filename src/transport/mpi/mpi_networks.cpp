// What net/networks.h declares of MPI, in a build that has it.
#include <exception>
#include <string>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "mpi/mpi_bootstrap.h"
#include "mpi/mpi_network.h"
#include "net/networks.h"

namespace shunt {

std::unique_ptr<net::Network> make_mpi_network(Bootstrap&, const World& world, const LaunchOptions& options,
                                               Deadline deadline) {
  if (!mpi_begun())
    throw Error(Errc::unavailable, "transport mpi: MPI has not begun: start the ranks with mpirun");
  return std::make_unique<mpi::MpiNetwork>(world, options.stall_deadline, deadline);
}

std::string mpi_unavailable_reason() {
  return {};
}

std::string mpi_description() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "MPI";
  const std::string all(text, static_cast<std::size_t>(length));
  // "Open MPI v4.1.4, package: ..." and "MPICH Version:\t4.0.2\nMPICH Release date: ...".
  std::string found = all.substr(0, all.find_first_of(",\n"));
  for (char& c : found) {
    if (c == '\t') c = ' ';
  }
  return found;
}

std::unique_ptr<Bootstrap> make_mpi_bootstrap() {
  if (!mpi_begun())
    throw Error(Errc::unavailable, "transport mpi: MPI has not begun: start the ranks with mpirun");
  return std::make_unique<mpi::MpiBootstrap>();
}

void mpi_begin() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized != 0) return;
  int provided = 0;
  const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  if (code != MPI_SUCCESS || provided < MPI_THREAD_FUNNELED) {
    throw Error(
        Errc::unavailable,
        fmt::format("MPI_Init_thread failed with code {} and thread level {}; {} (funneled) is needed", code,
                    provided, static_cast<int>(MPI_THREAD_FUNNELED)));
  }
}

bool mpi_begun() {
  int begun = 0;
  int ended = 0;
  MPI_Initialized(&begun);
  MPI_Finalized(&ended);
  return begun != 0 && ended == 0;
}

void mpi_end() noexcept {
  if (mpi_begun()) MPI_Finalize();
}

void mpi_abort(int status) noexcept {
  if (mpi_begun()) MPI_Abort(MPI_COMM_WORLD, status);
}

}  // namespace shunt

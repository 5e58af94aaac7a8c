// What stands for MPI in a build without it.
#include <shunt/core/error.h>

#include "net/networks.h"

namespace shunt {

std::string mpi_unavailable_reason() {
  return "this build has no MPI (package libopenmpi-dev, CMake option SHUNT_MPI)";
}

std::string mpi_description() {
  return {};
}

std::unique_ptr<net::Network> make_mpi_network(Bootstrap&, const World&, const LaunchOptions&, Deadline) {
  throw Error(Errc::unavailable, "transport mpi: " + mpi_unavailable_reason());
}

std::unique_ptr<Bootstrap> make_mpi_bootstrap() {
  throw Error(Errc::unavailable, "transport mpi: " + mpi_unavailable_reason());
}

void mpi_begin() {
  throw Error(Errc::unavailable, "transport mpi: " + mpi_unavailable_reason());
}

void mpi_end() noexcept {}

bool mpi_begun() {
  return false;
}

void mpi_abort(int) noexcept {}

}  // namespace shunt

#include "mpi.h"

namespace shunt::bench {

std::vector<MethodSpec> mpi_methods() {
  std::vector<MethodSpec> all{{.name = "simd/mpi", .summary = "vector pack, MPI_Alltoallv, vector unpack"},
                              {.name = "simd/mpi-dedup", .summary = "one row per token and rank over MPI"}};
  for (MethodSpec& spec : all)
    spec.unavailable = "this build has no MPI (package libopenmpi-dev, CMake option SHUNT_MPI)";
  return all;
}

}  // namespace shunt::bench

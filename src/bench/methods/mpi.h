#pragma once

#include <vector>

#include <shunt/bench/method.h>

namespace shunt::bench {

/// simd/mpi and simd/mpi-dedup with all their variants; in a build without MPI one line each that says so.
[[nodiscard]] std::vector<MethodSpec> mpi_methods();

}  // namespace shunt::bench

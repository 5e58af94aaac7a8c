#pragma once

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {

inline void cuda_require(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  throw Error(error == cudaErrorMemoryAllocation ? Errc::out_of_memory : Errc::internal,
              fmt::format("{}: {}", what, cudaGetErrorString(error)));
}

}  // namespace shunt::bench

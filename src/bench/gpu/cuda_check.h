#pragma once

#include <cuda_runtime_api.h>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {

inline void cuda_require(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  // A method that finds no memory is left out and the next one goes on: its launches must not find this error again.
  static_cast<void>(cudaGetLastError());
  throw Error(error == cudaErrorMemoryAllocation ? Errc::out_of_memory : Errc::internal,
              fmt::format("{}: {}", what, cudaGetErrorString(error)));
}

}  // namespace shunt::bench

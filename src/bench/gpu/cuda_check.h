#pragma once

#include <cuda_runtime_api.h>

#include <string>

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

/// Where this thread's GPU is on the PCI bus: what tells GPUs of a node apart, whatever each process calls them.
inline std::string gpu_address() {
  int device = 0;
  char bus[20] = {};
  cuda_require("cudaGetDevice", cudaGetDevice(&device));
  cuda_require("cudaDeviceGetPCIBusId", cudaDeviceGetPCIBusId(bus, sizeof bus, device));
  return bus;
}

}  // namespace shunt::bench

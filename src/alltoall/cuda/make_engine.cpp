// Which engine a transport gets, in a build with CUDA.
#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>

#include "engine.h"

namespace shunt::cuda::detail {

std::unique_ptr<Engine> make_engine(Transport& transport) {
  if (const std::string reason = unavailable_reason(); !reason.empty())
    throw Error(Errc::unavailable, "AllToAll on GPUs cannot run: " + reason);
  const Capabilities can = transport.capabilities();
  if (!can.device_memory)
    throw Error(
        Errc::unavailable,
        fmt::format("AllToAll on GPUs cannot run: the memory of transport {} is the host's; it needs a "
                    "transport with device memory",
                    transport.name()));
  if (!can.load_store) {
    // The library that the memory is of brings kernels that put.
    if (void* engine = transport.make_kernel_engine(); engine != nullptr)
      return std::unique_ptr<Engine>(static_cast<Engine*>(engine));
    throw Error(
        Errc::unavailable,
        fmt::format(
            "AllToAll on GPUs cannot run: transport {} does not reach the memory of every peer and has "
            "no net that puts from kernels; nvshmem and nccl have",
            transport.name()));
  }
  return make_load_store_engine();
}

}  // namespace shunt::cuda::detail

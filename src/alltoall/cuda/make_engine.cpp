// Which engine a transport gets, in a build with CUDA.
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/pack/cuda.h>

#include "engine.h"

namespace shunt::cuda::detail {
namespace {

/// For tests, on every rank alike: kernels that put are used towards peers that could be stored to as well. One GPU would
/// never run them.
bool puts_are_forced() {
  const char* const given = std::getenv("SHUNT_PUT_KERNELS");
  return given != nullptr && std::string_view(given) == "1";
}

}  // namespace

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
  if (!can.load_store || puts_are_forced()) {
    // The library that the memory is of brings kernels that put.
    if (void* engine = transport.make_kernel_engine(); engine != nullptr)
      return std::unique_ptr<Engine>(static_cast<Engine*>(engine));
    throw Error(
        Errc::unavailable,
        fmt::format(
            "AllToAll on GPUs cannot run: transport {} {} and has no net that puts from kernels; nvshmem and "
            "nccl have",
            transport.name(),
            can.load_store ? "is to put, as SHUNT_PUT_KERNELS says,"
                           : "does not reach the memory of every peer"));
  }
  return make_load_store_engine();
}

}  // namespace shunt::cuda::detail

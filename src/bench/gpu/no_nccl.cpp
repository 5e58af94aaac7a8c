#include <shunt/core/error.h>

#include "nccl_exchange.h"

namespace shunt::bench {

std::string nccl_unavailable() {
  return "this build has no NCCL";
}

std::unique_ptr<GpuExchange> make_nccl_exchange(const MethodContext& /*context*/) {
  throw Error(Errc::unavailable, nccl_unavailable());
}

}  // namespace shunt::bench

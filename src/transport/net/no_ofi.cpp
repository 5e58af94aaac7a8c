// What stands for libfabric in a build without it.
#include <shunt/core/error.h>

#include "net/networks.h"

namespace shunt {

std::string ofi_unavailable_reason() {
  return "this build has no libfabric (package libfabric-dev, CMake option SHUNT_OFI)";
}

bool ofi_has_provider() {
  return false;
}

std::string ofi_description() {
  return {};
}

std::unique_ptr<net::Network> make_ofi_network(Bootstrap&, const World&, const LaunchOptions&, Deadline) {
  throw Error(Errc::unavailable, "transport ofi: " + ofi_unavailable_reason());
}

}  // namespace shunt

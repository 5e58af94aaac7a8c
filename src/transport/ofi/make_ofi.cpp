#include <fmt/format.h>

#include "net/networks.h"
#include "ofi/ofi_network.h"

namespace shunt {

std::string ofi_unavailable_reason() {
  // Whether there is a provider shows when ranks start: asking here would initialise libfabric in a process
  // that forks them afterwards.
  return {};
}

namespace {

[[nodiscard]] const std::string& usable_providers() {
  static const std::string providers = ofi::list_providers();
  return providers;
}

}  // namespace

bool ofi_has_provider() {
  return !usable_providers().empty();
}

std::string ofi_description() {
  const std::string& providers = usable_providers();
  const std::uint32_t version = fi_version();
  return fmt::format("libfabric {}.{} with {}", FI_MAJOR(version), FI_MINOR(version),
                     providers.empty() ? "no usable provider" : providers);
}

std::unique_ptr<net::Network> make_ofi_network(Bootstrap& bootstrap, const World& world,
                                               const LaunchOptions& options, Deadline deadline) {
  return std::make_unique<ofi::OfiNetwork>(bootstrap, world, ofi::settings_of(options), deadline);
}

}  // namespace shunt

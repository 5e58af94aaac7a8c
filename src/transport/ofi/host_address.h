#pragma once

#include <cstdint>
#include <string>

namespace shunt {
class Bootstrap;
}  // namespace shunt

namespace shunt::ofi {

/// Entry number `index` mod n of a list separated by commas; empty for an empty list.
[[nodiscard]] std::string entry_of_list(const std::string& list, std::int32_t index);

/// Numeric address of an interface that is up; IPv4 before IPv6.
/// Errors: Errc::invalid_argument naming the interface and those there are.
[[nodiscard]] std::string address_of_interface(const std::string& interface);

/// The first interface's address that other hosts can reach (up, not loopback, not link-local); empty where
/// there is none.
[[nodiscard]] std::string first_routable_address();

/// Stands for the network namespace that this process is in; equal numbers mean that 127.0.0.1 is common.
[[nodiscard]] std::uint64_t network_identity();

}  // namespace shunt::ofi

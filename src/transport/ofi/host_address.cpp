#include "ofi/host_address.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/stat.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::ofi {
namespace {

struct Address {
  std::string interface;
  std::string numeric;
  bool loopback = false;
  bool link_local = false;
  bool ipv4 = false;
};

/// Of interfaces that are up; IPv4 first.
[[nodiscard]] std::vector<Address> host_addresses() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return {};
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, &freeifaddrs);
  std::vector<Address> addresses;
  for (const bool ipv4 : {true, false}) {
    for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
      if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
      const int family = entry->ifa_addr->sa_family;
      if (family != (ipv4 ? AF_INET : AF_INET6)) continue;
      std::array<char, INET6_ADDRSTRLEN> text{};
      const auto* v4 = reinterpret_cast<const sockaddr_in*>(entry->ifa_addr);
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr);
      const void* bytes = ipv4 ? static_cast<const void*>(&v4->sin_addr) : &v6->sin6_addr;
      if (inet_ntop(family, bytes, text.data(), text.size()) == nullptr) continue;
      addresses.push_back({.interface = entry->ifa_name,
                           .numeric = text.data(),
                           .loopback = (entry->ifa_flags & IFF_LOOPBACK) != 0,
                           .link_local = !ipv4 && IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr),
                           .ipv4 = ipv4});
    }
  }
  return addresses;
}

}  // namespace

std::string entry_of_list(const std::string& list, std::int32_t index) {
  std::vector<std::string> entries;
  std::size_t begin = 0;
  while (begin <= list.size()) {
    const std::size_t end = std::min(list.find(',', begin), list.size());
    if (end > begin) entries.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return entries.empty() ? std::string{} : entries[static_cast<std::size_t>(index) % entries.size()];
}

std::string address_of_interface(const std::string& interface) {
  std::set<std::string> known;
  for (const Address& address : host_addresses()) {
    known.insert(address.interface);
    if (address.interface == interface && !address.link_local) return address.numeric;
  }
  throw Error(Errc::invalid_argument,
              fmt::format("SHUNT_OFI_INTERFACE: no interface '{}' with an address is up here; there are: {}",
                          interface, fmt::join(known, ", ")));
}

std::string first_routable_address() {
  for (const Address& address : host_addresses()) {
    if (!address.loopback && !address.link_local) return address.numeric;
  }
  return {};
}

std::uint64_t network_identity() {
  std::string text = boot_id();
  struct stat info {};
  if (stat("/proc/self/ns/net", &info) == 0) text += fmt::format("/{}", info.st_ino);
  return std::hash<std::string>{}(text);
}

}  // namespace shunt::ofi

#include "peer_network.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::bench {
namespace {

struct Note {
  char host[80] = {};  ///< Equal exactly where ranks share host and network namespace
  char loopback[64] = {};
  char interface[64] = {};
  char address[32] = {};
  char error[240] = {};
};
static_assert(sizeof(Note) <= kNetworkNoteBytes);

template <std::size_t N>
void set(char (&field)[N], std::string_view text) {
  field[text.copy(field, N - 1)] = '\0';
}

std::string to_text(const sockaddr* address) {
  char text[INET_ADDRSTRLEN] = {};
  const auto* const v4 = reinterpret_cast<const sockaddr_in*>(address);
  inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
  return text;
}

struct Interface {
  std::string name, address;
};

/// The first interface with an IPv4 address that `wanted` takes; empty names where there is none.
Interface find_interface(const std::function<bool(const ifaddrs&, const std::string& address)>& wanted) {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return {};
  Interface found;
  for (const ifaddrs* at = list; at != nullptr && found.name.empty(); at = at->ifa_next) {
    if (at->ifa_addr == nullptr || at->ifa_addr->sa_family != AF_INET || (at->ifa_flags & IFF_UP) == 0)
      continue;
    const std::string address = to_text(at->ifa_addr);
    if (wanted(*at, address)) found = {at->ifa_name, address};
  }
  freeifaddrs(list);
  return found;
}

/// The own address that packets to `name` would carry, or empty. Sends nothing.
std::string address_towards(const char* name) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* list = nullptr;
  if (getaddrinfo(name, "1", &hints, &list) != 0) return {};
  std::string text;
  if (const int probe = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0); probe >= 0) {
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    if (connect(probe, list->ai_addr, list->ai_addrlen) == 0 &&
        getsockname(probe, reinterpret_cast<sockaddr*>(&own), &size) == 0)
      text = to_text(reinterpret_cast<const sockaddr*>(&own));
    close(probe);
  }
  freeaddrinfo(list);
  return text;
}

Note make_note() {
  Note note;
  struct stat network {};
  static_cast<void>(stat("/proc/self/ns/net", &network));
  set(note.host, fmt::format("{}/{}", boot_id(), static_cast<std::uint64_t>(network.st_ino)));
  set(note.loopback, find_interface([](const ifaddrs& one, const std::string&) {
                       return (one.ifa_flags & IFF_LOOPBACK) != 0;
                     }).name);

  const char* const given = std::getenv("SHUNT_GLOO_INTERFACE");
  const char* const master = std::getenv("MASTER_ADDR");
  Interface found;
  if (given != nullptr && *given != '\0') {
    found = find_interface(
        [&](const ifaddrs& one, const std::string&) { return one.ifa_name == std::string_view(given); });
    if (found.name.empty())
      set(note.error, fmt::format("SHUNT_GLOO_INTERFACE is \"{}\", which is no interface here that is up and "
                                  "has an IPv4 address",
                                  given));
  } else if (master != nullptr && *master != '\0') {
    const std::string own = address_towards(master);
    found = find_interface([&](const ifaddrs&, const std::string& address) { return address == own; });
    if (found.name.empty())
      set(note.error, fmt::format("no interface here leads to MASTER_ADDR \"{}\" over IPv4; "
                                  "SHUNT_GLOO_INTERFACE can name one",
                                  master));
  } else {
    set(note.error,
        "the ranks are on several hosts; SHUNT_GLOO_INTERFACE must name the interface between them");
  }
  set(note.interface, found.name);
  set(note.address, found.address);
  return note;
}

}  // namespace

PeerNetwork find_peer_network(const World& world, Collectives& collectives,
                              std::chrono::nanoseconds timeout) {
  const Note mine = make_note();
  std::vector<Note> all(static_cast<std::size_t>(world.size));
  collectives.allgather(&mine, sizeof mine, all.data(), timeout);
  const bool together = std::all_of(all.begin(), all.end(), [&](const Note& one) {
    return std::string_view(one.host) == mine.host && one.loopback[0] != '\0';
  });
  const char* const given = std::getenv("SHUNT_GLOO_INTERFACE");
  if (together && (given == nullptr || *given == '\0')) return {mine.loopback, "127.0.0.1", "127.0.0.1"};
  for (std::size_t rank = 0; rank < all.size(); ++rank)
    if (all[rank].error[0] != '\0')
      throw Error(Errc::unavailable, fmt::format("rank {}: {}", rank, all[rank].error));
  return {mine.interface, mine.address, all[0].address};
}

}  // namespace shunt::bench

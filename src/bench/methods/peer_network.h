#pragma once

#include <chrono>
#include <string>

#include <shunt/transport/collectives.h>
#include <shunt/transport/world.h>

namespace shunt::bench {

/// Bytes that Collectives must carry for the functions here.
inline constexpr std::int64_t kNetworkNoteBytes = 512;

/// Where the sockets of a peer method (gloo, torch) lie.
struct PeerNetwork {
  std::string interface;     ///< Of this rank
  std::string address;       ///< IPv4 address of this rank on it
  std::string root_address;  ///< That of rank 0
};

/// Collective. The loopback interface where all ranks share one host and network namespace; else, and wherever
/// it is set, the interface named by SHUNT_GLOO_INTERFACE, or the one that leads to MASTER_ADDR.
/// Errors: Errc::unavailable on every rank alike, naming the first rank that has none; those of Collectives.
[[nodiscard]] PeerNetwork find_peer_network(const World& world, Collectives& collectives,
                                            std::chrono::nanoseconds timeout);

}  // namespace shunt::bench

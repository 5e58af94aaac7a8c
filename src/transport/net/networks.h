#pragma once

#include <memory>
#include <string>

#include <shunt/transport/launch.h>
#include <shunt/transport/transport.h>

#include "bootstrap.h"
#include "net/network.h"

namespace shunt {

// Every function is defined in every build. Where this build lacks the library, the reasons say so, the
// makers throw Errc::unavailable with that reason and the others do nothing.

/// Collective among the ranks of `bootstrap`, which must outlive the network; world.nodes is filled in.
/// Errors: Errc::unavailable with the reason, Errc::timeout, Errc::peer_lost.
[[nodiscard]] std::unique_ptr<net::Network> make_ofi_network(Bootstrap& bootstrap, const World& world,
                                                             const LaunchOptions& options, Deadline deadline);
/// Why there can be none in this build; empty where there can. Whether it finds a provider: ofi_has_provider().
[[nodiscard]] std::string ofi_unavailable_reason();
/// What transport ofi is here, such as "libfabric 1.17 with tcp;ofi_rxm, shm"; only where it is available.
[[nodiscard]] std::string ofi_description();

/// Whether libfabric offers a usable provider here; asks it in a forked process, once.
[[nodiscard]] bool ofi_has_provider();

/// As make_ofi_network(), between mpi_begin() and mpi_end(). `bootstrap` is the one of make_mpi_bootstrap().
[[nodiscard]] std::unique_ptr<net::Network> make_mpi_network(Bootstrap& bootstrap, const World& world,
                                                             const LaunchOptions& options, Deadline deadline);
/// Why this build has no MPI; empty where it has. Whether MPI has begun is mpi_begun().
[[nodiscard]] std::string mpi_unavailable_reason();
/// Name and version of the MPI library; only where there is one.
[[nodiscard]] std::string mpi_description();
/// Collective among all ranks of MPI_COMM_WORLD, between mpi_begin() and mpi_end(). A communicator of its own
/// for each.
[[nodiscard]] std::unique_ptr<Bootstrap> make_mpi_bootstrap();
/// MPI_Init_thread and what must follow it. Errors: Errc::unavailable where this build has no MPI.
void mpi_begin();
/// MPI_Finalize where MPI has begun and every rank ended well.
void mpi_end() noexcept;
[[nodiscard]] bool mpi_begun();
/// Ends the whole job with `status`. Returns only where MPI has not begun.
void mpi_abort(int status) noexcept;

}  // namespace shunt

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <shunt/core/error.h>
#include <shunt/transport/transport.h>

namespace shunt {

/// How the ranks of one node run.
enum class RankMode : std::uint8_t {
  processes,  ///< Forked children of this process, one rank each.
  threads,    ///< Threads of this process; for sanitizers and debuggers.
};

struct LaunchOptions {
  std::int32_t ranks = 2;  ///< 1 <= ranks <= 1024
  RankMode mode = RankMode::processes;
  std::string transport = "shm";                     ///< A name of transport_registry()
  std::chrono::milliseconds start_deadline{30'000};  ///< For all ranks to meet
  bool pin = false;  ///< Pin rank r to the (r mod cores)-th CPU this process may run on
};

/// How one rank ended.
struct RankOutcome {
  std::int32_t rank = 0;
  int exit_status = 0;  ///< Of the rank's function or its error; 128 + signal where a signal killed it
  int signal = 0;       ///< 0, or the signal that killed the process
  /// Of the shunt::Error that ended the rank. Errc::internal where none did: the rank's function returned
  /// (with any status), threw something else, left by exit(), or a signal killed it.
  Errc code = Errc::internal;
  std::string message;  ///< Text of the error that ended the rank, empty on success
};

/// Runs `body` as every rank of a new world on this machine and returns when all have ended.
/// Ownership: a rank's Transport lives during the call of its body. The memory of the world is anonymous
///            (memfd): it is gone when the last rank ends, however it ends.
/// Errors:    Errc::invalid_argument, Errc::unavailable before anything is started. What happens in ranks is
///            reported in the outcomes: a shunt::Error in a rank ends it with exit_status(code). Where a rank
///            dies or throws, the others learn it in their next long wait and end with Errc::peer_lost; where
///            it is stopped, at their deadline. A stopped rank is killed when every other rank has ended, at
///            least one of them with an error. A child whose parent dies is killed.
/// Threads:   call from a single-threaded process (processes mode forks).
std::vector<RankOutcome> run_ranks(const LaunchOptions& options, const std::function<int(Transport&)>& body);

/// The status that says most about the cause, or 0 where every rank succeeded: the first non-zero one of a
/// rank that did not end by Errc::peer_lost, Errc::timeout or a signal (others may have lost it for that very
/// reason); else the first of one that lost a peer or waited too long (its message names it); else the first
/// signal's.
[[nodiscard]] int combined_status(const std::vector<RankOutcome>& outcomes);

/// One line of the registry.
struct TransportInfo {
  std::string name;
  bool available = false;
  std::string reason;  ///< Why not, or what it is
};
[[nodiscard]] std::vector<TransportInfo> transport_registry();

/// What the launcher's environment variables say; see parse_rank_environment().
struct RankEnvironment {
  bool present = false;  ///< Whether MASTER_ADDR … are set at all
  std::string master_addr;
  std::int32_t master_port = 0;
  std::int32_t world_size = 0;
  std::int32_t local_size = 0;  ///< WORLD_LOCAL_SIZE
  std::int32_t node_rank = 0;
  [[nodiscard]] std::int32_t nodes() const noexcept { return local_size == 0 ? 0 : world_size / local_size; }
};

/// Reads MASTER_ADDR MASTER_PORT WORLD_SIZE WORLD_LOCAL_SIZE NODE_RANK. `get` maps a name to its value or
/// null (std::getenv).
/// Result: present = false where MASTER_ADDR and WORLD_LOCAL_SIZE are both unset; the others, which several
///         launchers set for purposes of their own, then have no effect, but are checked each by itself.
/// Errors: Errc::invalid_argument naming the variable, its value and what is allowed. Of each that is set: a
///         name that is not empty, whole numbers, port 1-65535, sizes from 1, node rank from 0. Where one of
///         those two is set: all five set, WORLD_SIZE a multiple of WORLD_LOCAL_SIZE, NODE_RANK below their
///         quotient.
[[nodiscard]] RankEnvironment parse_rank_environment(const std::function<const char*(const char*)>& get);

}  // namespace shunt

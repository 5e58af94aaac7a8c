#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
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
  std::int32_t ranks = 2;  ///< 1 <= ranks <= 1024; a LaunchSession that joins a job takes the job's number
  /// Nodes that a machine pretends to be, for tests: ranks are split evenly among them, in rank order, and
  /// (but on shm, where all memory is one) only ranks of one node reach each other's memory. Divides `ranks`.
  std::int32_t nodes = 1;
  RankMode mode = RankMode::processes;
  /// A name of transport_registry(), or "auto": shm on one node; else mpi under an MPI launcher, else ofi. Memory of
  /// cuda_ipc, nvshmem and nccl lies on GPUs; a process that starts ranks as processes on it must not have used CUDA before.
  std::string transport = "shm";
  std::string
      provider{};  ///< Of ofi, such as "tcp;ofi_rxm", "verbs;ofi_rxm", "efa"; empty: the best one here
  /// Of those three: GPUs as this process numbers them, which the ranks of a node take in turn. Empty: those that
  /// SHUNT_DEVICE lists ("0,2"), else all. Several ranks may share a GPU, but not on nccl.
  std::vector<std::int32_t> devices = {};
  std::chrono::milliseconds start_deadline{30'000};  ///< For all ranks to meet
  std::chrono::milliseconds stall_deadline{30'000};  ///< Longest a put waits for room towards its peer
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
///            it is stopped, at their deadline. A stopped rank is killed when every other rank has ended and
///            has excluded it (Transport::exclude), or at least one of them ended with an error. A child whose
///            parent dies is killed.
///            An excluded rank fails nobody but itself: the survivors' outcomes are those of their bodies, and
///            its own still shows the signal that killed it, or Errc::peer_lost where it came back. Whether
///            the job has then succeeded is the caller's to say.
/// Threads:   call from a single-threaded process (processes mode forks).
std::vector<RankOutcome> run_ranks(const LaunchOptions& options, const std::function<int(Transport&)>& body);

/// How this process came to be part of a job.
enum class LaunchWay : std::uint8_t {
  local,  ///< It starts all ranks itself.
  node,   ///< MASTER_ADDR … without RANK: it starts the ranks of its node.
  rank,   ///< RANK and LOCAL_RANK, as torchrun sets them: it is one rank.
  mpi,    ///< mpirun, or srun with PMIx or PMI: it is one rank.
};

/// What the environment says about the job. Fields that the way does not use are 0.
struct Launch {
  LaunchWay way = LaunchWay::local;
  std::int32_t world_size = 0;  ///< 0 for local; for mpi it is known once a LaunchSession has begun
  std::int32_t local_size = 0;  ///< node: ranks to start; rank: LOCAL_WORLD_SIZE where set
  std::int32_t node_rank = 0;   ///< node
  std::int32_t rank = 0;        ///< rank
  std::int32_t local_rank = 0;  ///< rank
  std::string master_addr;      ///< node, rank
  std::int32_t master_port = 0;
};

/// Reads how this process was started. `explicit_ranks` > 0 (the user asked for that many local ranks) wins
/// over the environment; then RANK with LOCAL_RANK; then MASTER_ADDR …; then the variables of MPI and PMIx
/// launchers (OMPI_COMM_WORLD_SIZE, PMIX_RANK, PMI_RANK with PMI_SIZE).
/// Errors: Errc::invalid_argument as parse_rank_environment(), naming variable, value and range.
[[nodiscard]] Launch detect_launch(std::int32_t explicit_ranks,
                                   const std::function<const char*(const char*)>& get);

/// This process's part in a job, for its whole life: one at a time. All processes of the job make the same
/// calls in the same order.
/// Errors: the constructor: Errc::unavailable where the launcher is MPI and this build has none.
/// Threads: as run_ranks().
class LaunchSession {
 public:
  explicit LaunchSession(const Launch& launch);
  ~LaunchSession();
  LaunchSession(const LaunchSession&) = delete;
  LaunchSession& operator=(const LaunchSession&) = delete;

  [[nodiscard]] LaunchWay way() const noexcept;
  [[nodiscard]] std::int32_t world_size() const noexcept;  ///< 0 for local: LaunchOptions::ranks decides
  [[nodiscard]] bool leads() const noexcept;  ///< Is or starts rank 0: the process that prints and writes

  /// As run_ranks(), for the ranks that this process is or starts; their outcomes alone are returned. With
  /// way() local it is run_ranks(). May be called again and again; each call is a world of its own.
  /// Ranks that this process is (rank, mpi) run `body` in it. Where they end by an error under MPI, the caller
  /// must end the process with a status that is not 0, so that the launcher ends the job.
  std::vector<RankOutcome> run(const LaunchOptions& options, const std::function<int(Transport&)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The status that says most about the cause, or 0 where every rank succeeded: the first non-zero one of a
/// rank that did not end by Errc::peer_lost, Errc::timeout or a signal (others may have lost it for that very
/// reason); else the first of one that lost a peer or waited too long (its message names it); else the first
/// signal's. Knows nothing of exclusions: a caller whose ranks go on without others looks at the outcomes.
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

#pragma once

// Only C calls of MPI 3.1; the C++ bindings are gone from the standard and warn.
#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include <shunt/transport/transport.h>

namespace shunt::mpi {

/// Errors: Errc::peer_lost with MPI's own words unless `code` is success: with the checks that come before
/// our calls, what is left to fail is the other side or the way to it.
void check(int code, std::int32_t rank, const char* call);

/// A communicator of its own over all ranks of MPI_COMM_WORLD, so that no message of another user, or of an
/// earlier run, can match. Errors go to check() instead of ending the process.
class Communicator {
 public:
  /// Collective; does not wait.
  Communicator();
  /// Local. Gives the communicator back if retire() has run; else it is left to MPI, because a late message
  /// must not meet a new communicator that got the old one's number.
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  /// Collective, before get() is used; once the communicator is there it does nothing.
  /// Once all ranks have come it makes the one call of MPI here that blocks without a deadline,
  /// MPI_Comm_dup: a rank that ends within it ends the job by its launcher, but one that is stopped there
  /// keeps the others.
  /// Errors: Errc::timeout where a rank does not come.
  void join(Deadline deadline, const char* phase);
  [[nodiscard]] MPI_Comm get() const noexcept { return comm_; }
  [[nodiscard]] std::int32_t rank() const noexcept { return rank_; }
  [[nodiscard]] std::int32_t size() const noexcept { return size_; }

  /// Waits for a request of a collective call, calling `progress` (may be empty) in between.
  /// Errors: Errc::timeout naming the phase and, where it can be told, the lowest rank that has not come: ranks
  ///         that wait long tell each other that they are there.
  void wait(MPI_Request& request, Deadline deadline, const char* phase,
            const std::function<void()>& progress = {});
  /// Collective. All ranks have come here (until then `progress` is called) and nothing is on its way any more.
  /// Result: whether that was reached.
  [[nodiscard]] bool retire(Deadline deadline, const std::function<void()>& progress = {}) noexcept;

 private:
  void tell_all();
  void hear();
  [[nodiscard]] std::int32_t missing() const noexcept;

  MPI_Comm comm_ = MPI_COMM_NULL;
  MPI_Request joining_ = MPI_REQUEST_NULL;
  bool joined_ = false;
  std::int32_t rank_ = 0;
  std::int32_t size_ = 1;
  bool retired_ = false;
  std::uint64_t waits_ = 0;  ///< Collective waits begun, equal on all ranks
  /// What the running tells say
  std::unique_ptr<std::uint64_t> told_ = std::make_unique<std::uint64_t>(0);
  std::vector<MPI_Request> tells_;    ///< [R] or empty
  std::vector<std::uint64_t> heard_;  ///< [R] highest number of a wait that a rank said it is in
};

/// Gives the CPU away in a wait: spins, then yields, then sleeps.
class Idle {
 public:
  void operator()();
  [[nodiscard]] bool sleeping() const noexcept { return sleeping_; }

 private:
  std::int32_t turns_ = 0;
  Clock::time_point start_{};
  bool sleeping_ = false;
};

[[nodiscard]] std::int64_t milliseconds_since(Clock::time_point start);

}  // namespace shunt::mpi

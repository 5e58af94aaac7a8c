#pragma once

#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>
#if defined(OPEN_MPI)
#include <mpi-ext.h>
#endif

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace shunt::bench {

#if MPI_VERSION >= 4 || defined(OMPI_HAVE_MPI_EXT_PCOLLREQ)
inline constexpr bool kPersistentAlltoallv = true;
#else
inline constexpr bool kPersistentAlltoallv = false;
#endif

/// Ends the process where it stays in one call longer than the deadline: the blocking calls of MPI, which the
/// benchmark measures as people use them, have none of their own. The launcher then ends the job.
class Watchdog {
 public:
  Watchdog(std::int32_t rank, std::chrono::milliseconds deadline);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  /// phase: static storage; null: the call has returned.
  void watch(const char* phase) noexcept {
    since_.store(std::chrono::steady_clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    phase_.store(phase, std::memory_order_release);
  }

 private:
  void run();
  std::int32_t rank_;
  std::chrono::milliseconds deadline_;
  std::atomic<const char*> phase_{nullptr};
  std::atomic<std::int64_t> since_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::thread thread_;
};

/// How items travel.
enum class MpiWay : std::uint8_t {
  alltoallv,   ///< MPI_Alltoallv
  persistent,  ///< MPI_Alltoallv_init (MPIX_ in Open MPI 4) once, MPI_Start and MPI_Wait in each step
  pairwise,    ///< MPI_Irecv and MPI_Isend with every peer
};

/// Exchanges of items among all ranks by MPI, in two halves of a step.
class MpiExchange {
 public:
  /// Collective.
  MpiExchange(MpiWay way, std::chrono::milliseconds deadline);
  ~MpiExchange();
  MpiExchange(const MpiExchange&) = delete;
  MpiExchange& operator=(const MpiExchange&) = delete;

  /// Why this process has no MPI to do it, or no such way of it; empty where it can.
  [[nodiscard]] static const char* unsuited(MpiWay way, std::int32_t rank, std::int32_t size);

  /// send [R] items for each rank; receive [R] items from each.
  void counts(const std::int64_t* send, std::int64_t* receive);
  /// Lays out the items, densely and in rank order; counts() was called in this step.
  void plan(bool results, const std::vector<std::int64_t>& send, const std::vector<std::int64_t>& receive,
            std::int64_t item_bytes);
  [[nodiscard]] std::int64_t send_offset(bool results, std::int32_t peer) const noexcept {
    return half(results).item_bytes * half(results).send_at[static_cast<std::size_t>(peer)];
  }
  [[nodiscard]] std::int64_t receive_offset(bool results, std::int32_t peer) const noexcept {
    return half(results).item_bytes * half(results).receive_at[static_cast<std::size_t>(peer)];
  }
  void exchange(bool results, const std::byte* from, std::byte* to);

 private:
  struct Half {
    std::int64_t item_bytes = 0;
    MPI_Datatype item = MPI_DATATYPE_NULL;                ///< So that counts fit MPI's int
    std::vector<int> send, send_at, receive, receive_at;  ///< [R]
    MPI_Request persistent = MPI_REQUEST_NULL;
  };
  [[nodiscard]] const Half& half(bool results) const noexcept { return halves_[results ? 1 : 0]; }
  void start_persistent(Half& half, const std::byte* from, std::byte* to);
  void exchange_pairwise(const Half& half, const std::byte* from, std::byte* to);

  MpiWay way_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0;
  int ranks_ = 1;
  Watchdog watchdog_;
  std::array<Half, 2> halves_;
  std::vector<std::int64_t> last_send_, marked_, marked_received_;
  std::vector<MPI_Request> requests_;
};

}  // namespace shunt::bench

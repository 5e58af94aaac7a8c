#include "mpi_exchange.h"

#include <unistd.h>

#include <cstdio>
#include <limits>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

/// Carried by a count: this rank's counts are not those of its last step.
constexpr std::int64_t kChanged = std::int64_t{1} << 62;
constexpr int kItemsTag = 3;

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  throw Error(Errc::peer_lost, fmt::format("{} failed with code {}", call, code));
}

[[nodiscard]] int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}

}  // namespace

Watchdog::Watchdog(std::int32_t rank, std::chrono::milliseconds deadline)
    : rank_(rank), deadline_(deadline), thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Watchdog::run() {
  using namespace std::chrono_literals;
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, 500ms, [this] { return ending_; })) {
    const char* phase = phase_.load(std::memory_order_acquire);
    if (phase == nullptr) continue;
    const std::chrono::steady_clock::duration since(since_.load(std::memory_order_relaxed));
    const auto waited = std::chrono::steady_clock::now().time_since_epoch() - since;
    if (waited < deadline_) continue;
    std::fprintf(
        stderr, "rank %d: timed out after %lld ms in %s of MPI: a rank does not answer\n",
        static_cast<int>(rank_),
        static_cast<long long>(std::chrono::duration_cast<std::chrono::milliseconds>(waited).count()), phase);
    // The main thread is inside MPI, so no call of MPI is allowed here.
    _exit(exit_status(Errc::timeout));
  }
}

MpiExchange::MpiExchange(MpiWay way, std::chrono::milliseconds deadline)
    : way_(way), watchdog_(world_rank(), deadline) {
  watchdog_.watch("MPI_Comm_dup");
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), "MPI_Comm_dup");
  watchdog_.watch(nullptr);
  MPI_Comm_rank(comm_, &rank_);
  MPI_Comm_size(comm_, &ranks_);
  const auto ranks = static_cast<std::size_t>(ranks_);
  last_send_.assign(ranks, -1);
  marked_.assign(ranks, 0);
  marked_received_.assign(ranks, 0);
  requests_.assign(2 * ranks, MPI_REQUEST_NULL);
  for (Half& half : halves_) {
    for (auto* list : {&half.send, &half.send_at, &half.receive, &half.receive_at}) list->assign(ranks, 0);
  }
}

MpiExchange::~MpiExchange() {
  for (Half& half : halves_) {
    if (half.persistent != MPI_REQUEST_NULL) MPI_Request_free(&half.persistent);
    if (half.item != MPI_DATATYPE_NULL) MPI_Type_free(&half.item);
  }
  MPI_Comm_free(&comm_);
}

const char* MpiExchange::unsuited(MpiWay way, std::int32_t rank, std::int32_t size) {
  int begun = 0;
  MPI_Initialized(&begun);
  int mpi_rank = -1;
  int mpi_size = -1;
  if (begun != 0) {
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
  }
  if (mpi_rank != rank || mpi_size != size)
    return "needs an MPI launcher: mpirun -np N build/shunt bench alltoall";
  if (way == MpiWay::persistent && !kPersistentAlltoallv)
    return "this MPI has no persistent collectives (MPI 4, or <mpi-ext.h> of Open MPI 4)";
  return "";
}

void MpiExchange::counts(const std::int64_t* send, std::int64_t* receive) {
  bool changed = false;
  for (std::size_t p = 0; p < last_send_.size(); ++p) {
    changed = changed || last_send_[p] != send[p];
    last_send_[p] = send[p];
  }
  for (std::size_t p = 0; p < marked_.size(); ++p) marked_[p] = send[p] | (changed ? kChanged : 0);
  watchdog_.watch("the count exchange");
  check(MPI_Alltoall(marked_.data(), 1, MPI_INT64_T, marked_received_.data(), 1, MPI_INT64_T, comm_),
        "MPI_Alltoall");
  watchdog_.watch(nullptr);
  // Every rank hears every other, so all agree on whether requests for the old counts are of use.
  bool any = false;
  for (std::size_t p = 0; p < marked_received_.size(); ++p) {
    any = any || (marked_received_[p] & kChanged) != 0;
    receive[p] = marked_received_[p] & ~kChanged;
  }
  if (!any) return;
  for (Half& half : halves_) {
    if (half.persistent != MPI_REQUEST_NULL) MPI_Request_free(&half.persistent);
  }
}

void MpiExchange::plan(bool results, const std::vector<std::int64_t>& send,
                       const std::vector<std::int64_t>& receive, std::int64_t item_bytes) {
  Half& half = halves_[results ? 1 : 0];
  if (half.item_bytes != item_bytes) {
    half.item_bytes = item_bytes;
    check(MPI_Type_contiguous(static_cast<int>(item_bytes), MPI_BYTE, &half.item), "MPI_Type_contiguous");
    check(MPI_Type_commit(&half.item), "MPI_Type_commit");
  }
  std::int64_t sent = 0;
  std::int64_t received = 0;
  for (std::size_t p = 0; p < send.size(); ++p) {
    half.send[p] = static_cast<int>(send[p]);
    half.send_at[p] = static_cast<int>(sent);
    half.receive[p] = static_cast<int>(receive[p]);
    half.receive_at[p] = static_cast<int>(received);
    sent += send[p];
    received += receive[p];
  }
  if (sent > std::numeric_limits<int>::max() || received > std::numeric_limits<int>::max())
    throw Error(Errc::unavailable,
                fmt::format("rank {}: {} items to send and {} to receive are more than MPI counts", rank_,
                            sent, received));
}

void MpiExchange::exchange(bool results, const std::byte* from, std::byte* to) {
  Half& half = halves_[results ? 1 : 0];
  watchdog_.watch(results ? "the combine exchange" : "the dispatch exchange");
  switch (way_) {
    case MpiWay::alltoallv:
      check(MPI_Alltoallv(from, half.send.data(), half.send_at.data(), half.item, to, half.receive.data(),
                          half.receive_at.data(), half.item, comm_),
            "MPI_Alltoallv");
      break;
    case MpiWay::persistent:
      start_persistent(half, from, to);
      check(MPI_Wait(&half.persistent, MPI_STATUS_IGNORE), "MPI_Wait");
      break;
    case MpiWay::pairwise:
      exchange_pairwise(half, from, to);
      break;
  }
  watchdog_.watch(nullptr);
}

void MpiExchange::start_persistent(Half& half, const std::byte* from, std::byte* to) {
#if MPI_VERSION >= 4
  const auto make = MPI_Alltoallv_init;
#elif defined(OMPI_HAVE_MPI_EXT_PCOLLREQ)
  const auto make = MPIX_Alltoallv_init;
#endif
#if MPI_VERSION >= 4 || defined(OMPI_HAVE_MPI_EXT_PCOLLREQ)
  if (half.persistent == MPI_REQUEST_NULL)
    check(make(from, half.send.data(), half.send_at.data(), half.item, to, half.receive.data(),
               half.receive_at.data(), half.item, comm_, MPI_INFO_NULL, &half.persistent),
          "MPI_Alltoallv_init");
  check(MPI_Start(&half.persistent), "MPI_Start");
#else
  static_cast<void>(half);
  static_cast<void>(from);
  static_cast<void>(to);
#endif
}

void MpiExchange::exchange_pairwise(const Half& half, const std::byte* from, std::byte* to) {
  for (int step = 0; step < ranks_; ++step) {
    const int peer = (rank_ + ranks_ - step) % ranks_;
    const auto p = static_cast<std::size_t>(peer);
    check(MPI_Irecv(to + half.item_bytes * half.receive_at[p], half.receive[p], half.item, peer, kItemsTag,
                    comm_, &requests_[2 * p]),
          "MPI_Irecv");
  }
  for (int step = 0; step < ranks_; ++step) {
    const int peer = (rank_ + step) % ranks_;
    const auto p = static_cast<std::size_t>(peer);
    check(MPI_Isend(from + half.item_bytes * half.send_at[p], half.send[p], half.item, peer, kItemsTag, comm_,
                    &requests_[2 * p + 1]),
          "MPI_Isend");
  }
  check(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), MPI_STATUSES_IGNORE),
        "MPI_Waitall");
}

}  // namespace shunt::bench

#include "mpi/mpi_collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include <shunt/core/error.h>

#if defined(OPEN_MPI)
#include <mpi-ext.h>
#endif

namespace shunt::mpi {
namespace {

/// In an announced size: this call is not the sender's last one again.
constexpr std::int64_t kNew = std::int64_t{1} << 62;
constexpr std::int64_t kMostBytes = std::numeric_limits<int>::max();

[[nodiscard]] Deadline deadline_after(std::chrono::nanoseconds timeout) {
  const Deadline now = Clock::now();
  return timeout < Deadline::max() - now ? now + timeout : Deadline::max();
}

}  // namespace

MpiCollectives::MpiCollectives(Transport& transport, Communicator& communicator,
                               std::function<void()> progress, std::int64_t max_bytes, Deadline deadline)
    : transport_(transport),
      communicator_(communicator),
      progress_(std::move(progress)),
      rank_(transport.world().rank),
      size_(transport.world().size),
      sizes_{.rank = rank_, .size = size_, .max_bytes = max_bytes},
      memory_(transport.allocate(max_bytes, "collectives", deadline)) {
  const auto ranks = static_cast<std::size_t>(size_);
  announced_.assign(ranks, 0);
  heard_.assign(ranks, 0);
}

MpiCollectives::~MpiCollectives() {
  if (!failed_) drop_persistent();
  transport_.release(memory_);
}

void MpiCollectives::drop_persistent() noexcept {
  if (persistent_ != MPI_REQUEST_NULL) MPI_Request_free(&persistent_);
}

void MpiCollectives::abandon(Call&& call, std::vector<std::byte>&& aside) {
  struct Left {
    Call call, last;
    std::vector<std::byte> aside;
    std::vector<std::int64_t> announced, heard;
  };
  failed_ = true;
  // A request that is under way must not be freed; that of a broken job stays with MPI.
  persistent_ = MPI_REQUEST_NULL;
  static std::vector<std::unique_ptr<Left>>* const kept = new std::vector<std::unique_ptr<Left>>;
  kept->push_back(std::make_unique<Left>(Left{.call = std::move(call),
                                              .last = std::move(last_),
                                              .aside = std::move(aside),
                                              .announced = std::move(announced_),
                                              .heard = std::move(heard_)}));
}

void MpiCollectives::barrier(std::chrono::nanoseconds timeout) {
  if (size_ == 1) return;
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(communicator_.get(), &request), rank_, "MPI_Ibarrier");
  communicator_.wait(request, deadline_after(timeout), "barrier", progress_);
}

void MpiCollectives::allgather(const void* send, std::int64_t bytes, void* receive,
                               std::chrono::nanoseconds timeout) {
  sizes_.check_allgather(bytes);
  const auto ranks = static_cast<std::size_t>(size_);
  const std::vector<std::int64_t> zero(ranks), sizes(ranks, bytes);
  std::vector<std::int64_t> offsets(ranks);
  for (std::size_t p = 0; p < ranks; ++p) offsets[p] = static_cast<std::int64_t>(p) * bytes;
  exchange("allgather", send, zero, sizes, receive, offsets, sizes, timeout);
}

void MpiCollectives::alltoall(const void* send, std::int64_t bytes_per_peer, void* receive,
                              std::chrono::nanoseconds timeout) {
  sizes_.check_alltoall(bytes_per_peer);
  const auto ranks = static_cast<std::size_t>(size_);
  const std::vector<std::int64_t> sizes(ranks, bytes_per_peer);
  std::vector<std::int64_t> offsets(ranks);
  for (std::size_t p = 0; p < ranks; ++p) offsets[p] = static_cast<std::int64_t>(p) * bytes_per_peer;
  exchange("alltoall", send, offsets, sizes, receive, offsets, sizes, timeout);
}

void MpiCollectives::alltoallv(const void* send, std::span<const std::int64_t> send_offsets,
                               std::span<const std::int64_t> send_bytes, void* receive,
                               std::span<const std::int64_t> receive_offsets,
                               std::span<const std::int64_t> receive_bytes,
                               std::chrono::nanoseconds timeout) {
  sizes_.check_alltoallv(send_offsets, send_bytes, receive_offsets, receive_bytes);
  exchange("alltoallv", send, send_offsets, send_bytes, receive, receive_offsets, receive_bytes, timeout);
}

void MpiCollectives::exchange(const char* phase, const void* send, std::span<const std::int64_t> send_offsets,
                              std::span<const std::int64_t> send_bytes, void* receive,
                              std::span<const std::int64_t> receive_offsets,
                              std::span<const std::int64_t> receive_bytes, std::chrono::nanoseconds timeout) {
  if (failed_) {
    throw Error(Errc::invalid_state,
                fmt::format("rank {}: {} after an error of collectives that ended them", rank_, phase));
  }
  const Deadline deadline = deadline_after(timeout);
  const auto ranks = static_cast<std::size_t>(size_);
  std::int64_t last = 0;
  for (std::size_t p = 0; p < ranks; ++p) {
    last = std::max({last, send_offsets[p] + send_bytes[p], receive_offsets[p] + receive_bytes[p]});
  }
  if (last > kMostBytes) {
    throw Error(Errc::invalid_argument, fmt::format("rank {}: {} over {} bytes of one rank; MPI counts to {}",
                                                    rank_, phase, last, kMostBytes));
  }
  Call call{.from = send, .to = receive, .send = {}, .send_at = {}, .receive = {}, .receive_at = {}};
  for (std::size_t p = 0; p < ranks; ++p) {
    call.send.push_back(static_cast<int>(send_bytes[p]));
    call.send_at.push_back(static_cast<int>(send_offsets[p]));
    call.receive.push_back(static_cast<int>(receive_bytes[p]));
    call.receive_at.push_back(static_cast<int>(receive_offsets[p]));
  }
  const bool same = call == last_;
  for (std::size_t p = 0; p < ranks; ++p) announced_[p] = send_bytes[p] | (same ? 0 : kNew);
  std::vector<std::byte> aside;
  // Where one of the calls of MPI is not over, it may still read and write what it was given.
  struct KeepOnError {
    MpiCollectives& self;
    Call& call;
    std::vector<std::byte>& aside;
    bool over = false;
    ~KeepOnError() {
      if (!over) self.abandon(std::move(call), std::move(aside));
    }
  } keep{.self = *this, .call = call, .aside = aside};
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ialltoall(announced_.data(), 1, MPI_INT64_T, heard_.data(), 1, MPI_INT64_T, communicator_.get(),
                      &request),
        rank_, "MPI_Ialltoall");
  communicator_.wait(request, deadline, phase, progress_);

  bool repeated = true;
  std::string difference;
  for (std::size_t p = 0; p < ranks; ++p) {
    repeated = repeated && (heard_[p] & kNew) == 0;
    heard_[p] &= ~kNew;
    if (heard_[p] != receive_bytes[p] && difference.empty()) {
      difference =
          fmt::format("rank {}: {}: rank {} sends {} bytes, but {} are expected from it; both must be equal",
                      rank_, phase, p, heard_[p], receive_bytes[p]);
    }
  }
  if (difference.empty()) {
    move(call, repeated, deadline, phase);
    keep.over = true;
    if (!repeated) last_ = std::move(call);
    return;
  }
  // The pieces of the right size are moved all the same, and the peers' calls end well.
  std::int64_t total = 0;
  for (std::size_t p = 0; p < ranks; ++p) {
    call.receive[p] = static_cast<int>(heard_[p]);
    call.receive_at[p] = static_cast<int>(total);
    total += heard_[p];
  }
  aside.resize(static_cast<std::size_t>(total));
  call.to = aside.data();
  move(call, false, deadline, phase);
  keep.over = true;
  for (std::size_t p = 0; p < ranks; ++p) {
    if (heard_[p] != receive_bytes[p] || heard_[p] == 0) continue;
    std::memcpy(static_cast<std::byte*>(receive) + receive_offsets[p], aside.data() + call.receive_at[p],
                static_cast<std::size_t>(heard_[p]));
  }
  last_ = {};
  throw Error(Errc::invalid_argument, difference);
}

/// `repeated` is the same on every rank.
void MpiCollectives::move(const Call& call, bool repeated, Deadline deadline, const char* phase) {
  if (!repeated) drop_persistent();
#if MPI_VERSION >= 4 || defined(OMPI_HAVE_MPI_EXT_PCOLLREQ)
#if MPI_VERSION >= 4
  const auto make = MPI_Alltoallv_init;
#else
  const auto make = MPIX_Alltoallv_init;
#endif
  if (repeated) {
    // The request refers to the counts in last_, which are those of this call.
    if (persistent_ == MPI_REQUEST_NULL) {
      check(
          make(last_.from, last_.send.data(), last_.send_at.data(), MPI_BYTE, last_.to, last_.receive.data(),
               last_.receive_at.data(), MPI_BYTE, communicator_.get(), MPI_INFO_NULL, &persistent_),
          rank_, "MPI_Alltoallv_init");
    }
    check(MPI_Start(&persistent_), rank_, "MPI_Start");
    communicator_.wait(persistent_, deadline, phase, progress_);
    return;
  }
#endif
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ialltoallv(call.from, call.send.data(), call.send_at.data(), MPI_BYTE, call.to,
                       call.receive.data(), call.receive_at.data(), MPI_BYTE, communicator_.get(), &request),
        rank_, "MPI_Ialltoallv");
  communicator_.wait(request, deadline, phase, progress_);
}

}  // namespace shunt::mpi

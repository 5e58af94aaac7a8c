#include "mpi/mpi_call.h"

#include <fmt/format.h>
#include <sched.h>

#include <string>
#include <thread>

#include <shunt/core/error.h>

namespace shunt::mpi {
namespace {

using namespace std::chrono_literals;

constexpr int kTellTag = 77;
constexpr auto kYieldTime = 10ms;
constexpr auto kSleep = 50us;
constexpr std::int32_t kTurnsPerClock = 16;

}  // namespace

std::int64_t milliseconds_since(Clock::time_point start) {
  return std::chrono::round<std::chrono::milliseconds>(Clock::now() - start).count();
}

void check(int code, std::int32_t rank, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) length = 0;
  throw Error(Errc::peer_lost, fmt::format("rank {}: MPI lost the way to the other ranks: {}: {}", rank, call,
                                           std::string(text, static_cast<std::size_t>(length))));
}

void Idle::operator()() {
  ++turns_;
  if (sleeping_) {
    std::this_thread::sleep_for(kSleep);
    return;
  }
  // Each turn made a call of MPI, which is a spin of about a microsecond already.
  if (turns_ < 4) return;
  sched_yield();
  if (turns_ % kTurnsPerClock != 0) return;
  const auto now = Clock::now();
  if (start_ == Clock::time_point{}) start_ = now;
  sleeping_ = now - start_ >= kYieldTime;
}

Communicator::Communicator() {
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  heard_.assign(static_cast<std::size_t>(size_), 0);
  check(MPI_Ibarrier(MPI_COMM_WORLD, &joining_), rank_, "MPI_Ibarrier");
}

void Communicator::join(Deadline deadline, const char* phase) {
  if (joined_) return;
  const auto start = Clock::now();
  Idle idle;
  int done = 0;
  while (true) {
    check(MPI_Test(&joining_, &done, MPI_STATUS_IGNORE), rank_, "MPI_Test");
    if (done != 0) break;
    if (Clock::now() >= deadline) {
      throw Error(Errc::timeout, fmt::format("rank {}: timed out after {} ms waiting for all {} ranks in {}",
                                             rank_, milliseconds_since(start), size_, phase));
    }
    idle();
  }
  // Not MPI_Comm_idup: with it, 8 ranks under Open MPI 4.1.4 lost messages or crashed in its recv_frag_callback_match in
  // some runs. All ranks are here, so the blocking call is short.
  check(MPI_Comm_dup(MPI_COMM_WORLD, &comm_), rank_, "MPI_Comm_dup");
  check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), rank_, "MPI_Comm_set_errhandler");
  joined_ = true;
}

Communicator::~Communicator() {
  int ended = 0;
  MPI_Finalized(&ended);
  if (retired_ && ended == 0) MPI_Comm_free(&comm_);
  // A message may still be sent from it.
  if (!retired_) static_cast<void>(told_.release());
}

void Communicator::tell_all() {
  if (*told_ == waits_) return;
  if (tells_.empty()) {
    tells_.assign(static_cast<std::size_t>(size_), MPI_REQUEST_NULL);
  } else {
    int done = 0;
    check(MPI_Testall(size_, tells_.data(), &done, MPI_STATUSES_IGNORE), rank_, "MPI_Testall");
    if (done == 0) return;
  }
  *told_ = waits_;
  for (std::int32_t peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    check(MPI_Isend(told_.get(), 1, MPI_UINT64_T, peer, kTellTag, comm_,
                    &tells_[static_cast<std::size_t>(peer)]),
          rank_, "MPI_Isend");
  }
}

void Communicator::hear() {
  while (true) {
    int there = 0;
    MPI_Status status;
    check(MPI_Iprobe(MPI_ANY_SOURCE, kTellTag, comm_, &there, &status), rank_, "MPI_Iprobe");
    if (there == 0) return;
    std::uint64_t number = 0;
    check(MPI_Recv(&number, 1, MPI_UINT64_T, status.MPI_SOURCE, kTellTag, comm_, MPI_STATUS_IGNORE), rank_,
          "MPI_Recv");
    std::uint64_t& heard = heard_[static_cast<std::size_t>(status.MPI_SOURCE)];
    if (number > heard) heard = number;
  }
}

std::int32_t Communicator::missing() const noexcept {
  for (std::int32_t peer = 0; peer < size_; ++peer) {
    if (peer != rank_ && heard_[static_cast<std::size_t>(peer)] < waits_) return peer;
  }
  return -1;
}

void Communicator::wait(MPI_Request& request, Deadline deadline, const char* phase,
                        const std::function<void()>& progress) {
  const auto start = Clock::now();
  ++waits_;
  Idle idle;
  int done = 0;
  while (true) {
    check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), rank_, phase);
    if (done != 0) break;
    if (progress) progress();
    if (idle.sleeping()) {
      tell_all();
      hear();
    }
    if (Clock::now() >= deadline) {
      tell_all();
      hear();
      const std::int32_t peer = missing();
      throw Error(
          Errc::timeout,
          fmt::format("rank {}: timed out after {} ms waiting {} in {}", rank_, milliseconds_since(start),
                      peer < 0 ? "for the bytes of all ranks" : fmt::format("for rank {}", peer), phase),
          peer);
    }
    idle();
  }
  if (idle.sleeping()) hear();
}

bool Communicator::retire(Deadline deadline, const std::function<void()>& progress) noexcept try {
  join(deadline, "end");
  MPI_Request request = MPI_REQUEST_NULL;
  check(MPI_Ibarrier(comm_, &request), rank_, "MPI_Ibarrier");
  wait(request, deadline, "end", progress);
  // What ranks still sent each other until then was sent before the messages of a second barrier.
  check(MPI_Ibarrier(comm_, &request), rank_, "MPI_Ibarrier");
  wait(request, deadline, "end");
  hear();
  if (!tells_.empty()) check(MPI_Waitall(size_, tells_.data(), MPI_STATUSES_IGNORE), rank_, "MPI_Waitall");
  retired_ = true;
  return true;
} catch (...) {
  return false;
}

}  // namespace shunt::mpi

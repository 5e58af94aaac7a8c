#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <shunt/transport/collectives.h>

#include "collective_sizes.h"
#include "mpi/mpi_call.h"

namespace shunt::mpi {

/// Collectives by those of MPI, for ranks on several nodes: MPI chooses the algorithm for the network. Sizes are
/// announced first, as the contract asks for pieces of wrong size; a call that repeats the last one on every rank
/// (the same sizes and places) uses a persistent collective where MPI has it.
/// Errors: as Collectives. A rank that does not come is named by those that wait for long, see Communicator.
class MpiCollectives final : public Collectives {
 public:
  /// Collective. `communicator` is used by one collective call at a time; `progress` lets puts under way go on.
  /// Both, and `transport`, outlive this.
  MpiCollectives(Transport& transport, Communicator& communicator, std::function<void()> progress,
                 std::int64_t max_bytes, Deadline deadline);
  ~MpiCollectives() override;
  MpiCollectives(const MpiCollectives&) = delete;
  MpiCollectives& operator=(const MpiCollectives&) = delete;

  void barrier(std::chrono::nanoseconds timeout) override;
  void allgather(const void* send, std::int64_t bytes, void* receive,
                 std::chrono::nanoseconds timeout) override;
  void alltoall(const void* send, std::int64_t bytes_per_peer, void* receive,
                std::chrono::nanoseconds timeout) override;
  [[nodiscard]] std::byte* send_buffer() noexcept override { return memory_.local; }
  void alltoallv(const void* send, std::span<const std::int64_t> send_offsets,
                 std::span<const std::int64_t> send_bytes, void* receive,
                 std::span<const std::int64_t> receive_offsets, std::span<const std::int64_t> receive_bytes,
                 std::chrono::nanoseconds timeout) override;

 private:
  /// One call of alltoallv in MPI's terms.
  struct Call {
    const void* from = nullptr;
    void* to = nullptr;
    std::vector<int> send, send_at, receive, receive_at;  ///< [R] bytes
    bool operator==(const Call&) const = default;
  };

  void exchange(const char* phase, const void* send, std::span<const std::int64_t> send_offsets,
                std::span<const std::int64_t> send_bytes, void* receive,
                std::span<const std::int64_t> receive_offsets, std::span<const std::int64_t> receive_bytes,
                std::chrono::nanoseconds timeout);
  void move(const Call& call, bool repeated, Deadline deadline, const char* phase);
  void drop_persistent() noexcept;
  /// Ends these collectives and keeps what MPI may still use for as long as the process lives.
  void abandon(Call&& call, std::vector<std::byte>&& aside);

  Transport& transport_;
  Communicator& communicator_;
  std::function<void()> progress_;
  std::int32_t rank_;
  std::int32_t size_;
  CollectiveSizes sizes_;
  SymmetricBuffer memory_;
  Call last_;
  MPI_Request persistent_ = MPI_REQUEST_NULL;
  bool failed_ = false;
  std::vector<std::int64_t> announced_, heard_;  ///< [R] sizes
};

}  // namespace shunt::mpi

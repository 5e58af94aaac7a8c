#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bootstrap.h"

namespace shunt {

/// How ranks find each other by TCP.
struct TcpMeeting {
  std::string address;  ///< Of rank 0: a name or an address; it listens there and at no other
  std::int32_t port = 0;
  std::int32_t rank = 0;
  std::int32_t size = 1;
  /// Number of the world among those that the same processes make one after another at the same port.
  std::uint32_t generation = 0;
  std::uint64_t cookie =
      0;  ///< Equal on all ranks of a job, another one for another job, as far as one knows
};

/// A star of connections with rank 0 in the middle. The connections stay open: where one ends without a word
/// its rank is gone, and rank 0 tells the others.
class TcpBootstrap final : public Bootstrap {
 public:
  /// Collective. Rank 0 listens until all have come; the others try until it does.
  /// Errors: Errc::timeout naming the ranks that did not come; Errc::unavailable where the address is none of this
  ///         machine's, the port is taken, or rank 0 refuses this rank (another world size, a rank that is
  ///         there already, an older generation, another job).
  TcpBootstrap(const TcpMeeting& meeting, Deadline deadline);
  ~TcpBootstrap() override;
  TcpBootstrap(const TcpBootstrap&) = delete;
  TcpBootstrap& operator=(const TcpBootstrap&) = delete;

  [[nodiscard]] std::int32_t rank() const noexcept override { return meeting_.rank; }
  [[nodiscard]] std::int32_t size() const noexcept override { return meeting_.size; }
  void allgather(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                 const char* phase) override;
  [[nodiscard]] std::int32_t lost() noexcept override;
  void exclude(std::span<const std::int32_t> ranks) override;
  [[nodiscard]] std::string local_address() const override { return local_address_; }

 private:
  enum class Kind : std::uint32_t { data = 1, lost, leave, fail };
  struct Frame {
    Kind kind = Kind::data;
    std::int32_t rank = 0;
    std::int64_t bytes = 0;
  };
  struct Peer {
    int socket = -1;
    bool left = false;    ///< It said so
    bool failed = false;  ///< It left, and because of an error
    bool gone = false;    ///< It did not say so
  };

  void gather_ranks(Deadline deadline);
  void join(Deadline deadline);
  void close_all() noexcept;
  void look(Peer& peer, std::int32_t from) noexcept;
  void receive(std::int32_t from, void* to, std::int64_t bytes, Deadline deadline, const char* phase);
  void send(std::int32_t to, const Frame& frame, const void* payload, Deadline deadline, const char* phase);
  void tell_lost(std::int32_t rank) noexcept;
  [[noreturn]] void throw_lost(std::int32_t rank, std::int32_t awaited, const char* phase);
  [[noreturn]] void throw_timeout(std::int32_t awaited, const char* phase, const std::string& more);

  TcpMeeting meeting_;
  std::string local_address_;
  std::vector<Peer> peers_;  ///< [R] on rank 0; on others that of rank 0 alone
  std::vector<std::uint8_t> excluded_;
  std::int32_t told_lost_ = -1;  ///< By rank 0
  Clock::time_point started_ = Clock::now();
  Clock::time_point next_look_ = {};
};

}  // namespace shunt

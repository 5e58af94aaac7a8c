#pragma once

#include <memory>
#include <string>

#include "transport_bench_ops.h"

namespace shunt::bench {

/// One TCP connection between the two ranks of a pair, for the floor of network transports. It waits as the
/// transports do: it spins briefly, then sleeps until there is something.
class TcpLink {
 public:
  /// Collective among all ranks. `address`: at which rank 0 listens; this rank's own address towards it comes
  /// from the route. Where no connection comes about, usable() is false on every rank and reason() says why.
  TcpLink(const Pair& pair, Collectives& control, const std::string& address,
          std::chrono::milliseconds deadline);
  ~TcpLink();
  TcpLink(const TcpLink&) = delete;
  TcpLink& operator=(const TcpLink&) = delete;

  [[nodiscard]] bool usable() const noexcept { return reason_.empty(); }
  [[nodiscard]] const std::string& reason() const noexcept { return reason_; }
  /// Errors: Errc::timeout, Errc::peer_lost naming both ranks.
  void send(const std::byte* from, std::int64_t bytes, Deadline deadline);
  void receive(std::byte* to, std::int64_t bytes, Deadline deadline);

 private:
  void wait_for(short events, Deadline deadline) const;
  [[noreturn]] void fail(const char* what, int error) const;
  int socket_ = -1;
  std::int32_t rank_, peer_;
  std::string reason_;
};

/// "put_latency" (ping-pong) or "put_bandwidth" (a stream as long as the window, answered by one byte).
[[nodiscard]] std::unique_ptr<Exercise> make_tcp_exercise(const std::string& op, Pair& pair, TcpLink& link);

}  // namespace shunt::bench

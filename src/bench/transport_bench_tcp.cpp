#include "transport_bench_tcp.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

constexpr int kSpins = 2000;

/// What each rank tells the others while the connection is made.
struct Offer {
  sockaddr_storage address{};
  std::int32_t address_bytes = 0;
  char reason[200] = {};
};

std::vector<Offer> gather(Collectives& control, std::int32_t ranks, const Offer& mine,
                          std::chrono::milliseconds deadline) {
  std::vector<Offer> all(static_cast<std::size_t>(ranks));
  control.allgather(&mine, static_cast<std::int64_t>(sizeof mine), all.data(), deadline);
  return all;
}

void note(Offer& offer, const std::string& reason) {
  reason.copy(offer.reason, sizeof offer.reason - 1);
}

void note_error(Offer& offer, const char* what) {
  note(offer, fmt::format("{}: {}", what, std::strerror(errno)));
}

/// Listens on a free port of `name`. -1 with a reason in the offer where that fails.
int listen_at(const std::string& name, Offer& offer) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(name.c_str(), nullptr, &hints, &found); error != 0) {
    note(offer, fmt::format("address {}: {}", name, gai_strerror(error)));
    return -1;
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  const int listener = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) {
    note_error(offer, "socket");
    return -1;
  }
  socklen_t bytes = sizeof offer.address;
  if (bind(listener, found->ai_addr, found->ai_addrlen) != 0 || listen(listener, 1) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&offer.address), &bytes) != 0) {
    note_error(offer, fmt::format("listening at {}", name).c_str());
    close(listener);
    return -1;
  }
  offer.address_bytes = static_cast<std::int32_t>(bytes);
  return listener;
}

int accept_one(int listener, std::chrono::milliseconds deadline, Offer& offer) {
  pollfd waiting{.fd = listener, .events = POLLIN, .revents = 0};
  if (poll(&waiting, 1, static_cast<int>(deadline.count())) != 1) {
    note(offer, "no connection came before the deadline");
    return -1;
  }
  const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (connection < 0) note_error(offer, "accept");
  return connection;
}

int connect_to(const Offer& target, std::chrono::milliseconds deadline, Offer& offer) {
  const int connection = socket(target.address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (connection < 0) {
    note_error(offer, "socket");
    return -1;
  }
  const int started = connect(connection, reinterpret_cast<const sockaddr*>(&target.address),
                              static_cast<socklen_t>(target.address_bytes));
  int error = started == 0 ? 0 : errno;
  if (error == EINPROGRESS) {
    pollfd waiting{.fd = connection, .events = POLLOUT, .revents = 0};
    socklen_t bytes = sizeof error;
    if (poll(&waiting, 1, static_cast<int>(deadline.count())) != 1)
      error = ETIMEDOUT;
    else if (getsockopt(connection, SOL_SOCKET, SO_ERROR, &error, &bytes) != 0)
      error = errno;
  }
  if (error == 0) return connection;
  errno = error;
  note_error(offer, "connect");
  close(connection);
  return -1;
}

}  // namespace

TcpLink::TcpLink(const Pair& pair, Collectives& control, const std::string& address,
                 std::chrono::milliseconds deadline)
    : rank_(pair.rank()), peer_(pair.peer()) {
  const std::int32_t ranks = pair.world_size();
  Offer mine;
  int listener = -1;
  if (pair.takes_part() && pair.first()) listener = listen_at(address, mine);
  const Offer target = gather(control, ranks, mine, deadline)[0];
  if (target.reason[0] != '\0') {
    reason_ = target.reason;
    return;
  }
  // The waits for each other here must end before those of the ranks that only look on.
  const auto short_deadline = deadline / 2;
  if (listener >= 0) {
    socket_ = accept_one(listener, short_deadline, mine);
    close(listener);
  } else if (pair.takes_part()) {
    socket_ = connect_to(target, short_deadline, mine);
  }
  const int on = 1;
  if (socket_ >= 0) setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  for (const Offer& offer : gather(control, ranks, mine, deadline))
    if (reason_.empty()) reason_ = offer.reason;
}

TcpLink::~TcpLink() {
  if (socket_ >= 0) close(socket_);
}

void TcpLink::fail(const char* what, int error) const {
  const Errc code = error == ETIMEDOUT ? Errc::timeout : Errc::peer_lost;
  throw Error(code, fmt::format("rank {}: tcp_raw: {} rank {}: {}", rank_, what, peer_,
                                error == 0 ? "the connection was closed" : std::strerror(error)));
}

void TcpLink::wait_for(short events, Deadline deadline) const {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
  pollfd waiting{.fd = socket_, .events = events, .revents = 0};
  const int ready =
      left <= 0 ? 0 : poll(&waiting, 1, static_cast<int>(std::min<std::int64_t>(left, 1 << 30)));
  if (ready == 0) fail("waiting for", ETIMEDOUT);
  if (ready < 0 && errno != EINTR) fail("waiting for", errno);
}

void TcpLink::send(const std::byte* from, std::int64_t bytes, Deadline deadline) {
  int spins = 0;
  while (bytes > 0) {
    const ssize_t done = ::send(socket_, from, static_cast<std::size_t>(bytes), MSG_NOSIGNAL);
    if (done > 0) {
      from += done;
      bytes -= done;
      spins = 0;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (++spins > kSpins) wait_for(POLLOUT, deadline);
    } else if (errno != EINTR) {
      fail("sending to", errno);
    }
  }
}

void TcpLink::receive(std::byte* to, std::int64_t bytes, Deadline deadline) {
  int spins = 0;
  while (bytes > 0) {
    const ssize_t done = recv(socket_, to, static_cast<std::size_t>(bytes), 0);
    if (done > 0) {
      to += done;
      bytes -= done;
      spins = 0;
    } else if (done == 0) {
      fail("receiving from", 0);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      if (++spins > kSpins) wait_for(POLLIN, deadline);
    } else if (errno != EINTR) {
      fail("receiving from", errno);
    }
  }
}

namespace {

class TcpExercise final : public Exercise {
 public:
  TcpExercise(Pair& pair, TcpLink& link, bool stream) : pair_(pair), link_(link), stream_(stream) {
    if (!pair.takes_part()) return;
    outgoing_.resize(static_cast<std::size_t>(pair.region_bytes()));
    incoming_.resize(static_cast<std::size_t>(pair.region_bytes()));
  }
  [[nodiscard]] bool takes_part() const override { return pair_.takes_part(); }
  void meet(std::uint64_t sequence) override { pair_.meet(sequence); }
  void settle() override {}
  void fill(const Shape& shape, std::uint64_t sequence) override {
    if (sends()) fill_messages(outgoing_.data(), shape, sequence, pair_.rank(), pair_.peer());
  }
  Busy run(const Shape& shape, std::uint64_t) override {
    const Deadline until = pair_.deadline();
    const std::int64_t forth = shape.messages * shape.bytes;
    const std::int64_t back = stream_ ? 1 : forth;
    if (!pair_.first()) {
      link_.receive(incoming_.data(), forth, until);
      link_.send(outgoing_.data(), back, until);
      return {};
    }
    Busy busy{.begin_ns = bench_now_ns()};
    link_.send(outgoing_.data(), forth, until);
    link_.receive(incoming_.data(), back, until);
    busy.end_ns = bench_now_ns();
    return busy;
  }
  void check(const Shape& shape, std::uint64_t sequence, Found& found) override {
    if (stream_ && pair_.first()) return;
    check_messages(incoming_.data(), shape, sequence, pair_.peer(), pair_.rank(), found);
  }

 private:
  [[nodiscard]] bool sends() const { return pair_.first() || !stream_; }
  Pair& pair_;
  TcpLink& link_;
  bool stream_;
  std::vector<std::byte> outgoing_, incoming_;
};

}  // namespace

std::unique_ptr<Exercise> make_tcp_exercise(const std::string& op, Pair& pair, TcpLink& link) {
  return std::make_unique<TcpExercise>(pair, link, op == "put_bandwidth");
}

}  // namespace shunt::bench

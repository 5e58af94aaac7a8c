#include "bootstrap/tcp_socket.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>

#include <shunt/core/error.h>

namespace shunt::tcp {
namespace {

using namespace std::chrono_literals;

constexpr auto kBetweenTries = 20ms;
/// A rank says Hello at once; others that connect may keep silent for ever.
constexpr auto kTimeForHello = 5s;
constexpr int kBacklog = 1024;

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

[[nodiscard]] Addresses resolve(const std::string& address, std::int32_t port, std::string& problem) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(address.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (code != 0) {
    problem = fmt::format("the address is not known: {}", gai_strerror(code));
    found = nullptr;
  }
  return {found, &freeaddrinfo};
}

[[nodiscard]] std::string numeric(const sockaddr* address, socklen_t length) {
  std::array<char, NI_MAXHOST> text{};
  if (getnameinfo(address, length, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST) != 0) return {};
  return text.data();
}

void set_up(int socket) {
  const int on = 1;
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

}  // namespace

bool wait_ready(pollfd& ready, Deadline deadline) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    const int result = poll(&ready, 1, static_cast<int>(std::clamp<std::int64_t>(left, 0, 1 << 30)));
    if (result > 0) return true;
    if (result == 0 || errno != EINTR) return false;
  }
}

Result send_all(int socket, const void* data, std::size_t bytes, Deadline deadline) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t sent = ::send(socket, from, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0) {
      from += sent;
      bytes -= static_cast<std::size_t>(sent);
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return Result::ended;
    pollfd ready{.fd = socket, .events = POLLOUT, .revents = 0};
    if (!wait_ready(ready, deadline)) return Result::timed_out;
  }
  return Result::done;
}

Result receive_all(int socket, void* data, std::size_t bytes, Deadline deadline) {
  auto* to = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t got = recv(socket, to, bytes, MSG_DONTWAIT);
    if (got > 0) {
      to += got;
      bytes -= static_cast<std::size_t>(got);
      continue;
    }
    if (got == 0) return Result::ended;
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EWOULDBLOCK) return Result::ended;
    pollfd ready{.fd = socket, .events = POLLIN, .revents = 0};
    if (!wait_ready(ready, deadline)) return Result::timed_out;
  }
  return Result::done;
}

int connect_to(const std::string& address, std::int32_t port, Deadline deadline, std::string& problem) {
  const Addresses found = resolve(address, port, problem);
  for (const addrinfo* one = found.get(); one != nullptr; one = one->ai_next) {
    const int socket =
        ::socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, one->ai_protocol);
    if (socket < 0) continue;
    int error = connect(socket, one->ai_addr, one->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      pollfd ready{.fd = socket, .events = POLLOUT, .revents = 0};
      socklen_t length = sizeof error;
      error = ETIMEDOUT;
      if (wait_ready(ready, std::min<Deadline>(deadline, Clock::now() + kTimeForHello)))
        getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length);
    }
    // A port of the own machine that nobody listens at may connect to itself.
    sockaddr_storage own{};
    sockaddr_storage peer{};
    socklen_t own_length = sizeof own;
    socklen_t peer_length = sizeof peer;
    const bool itself = error == 0 &&
                        getsockname(socket, reinterpret_cast<sockaddr*>(&own), &own_length) == 0 &&
                        getpeername(socket, reinterpret_cast<sockaddr*>(&peer), &peer_length) == 0 &&
                        own_length == peer_length && std::memcmp(&own, &peer, own_length) == 0;
    if (error == 0 && !itself) {
      set_up(socket);
      return socket;
    }
    problem = itself ? "nobody listens there" : std::strerror(error);
    close(socket);
  }
  return -1;
}

std::string own_address(int socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) return {};
  return numeric(reinterpret_cast<const sockaddr*>(&address), length);
}

void pause_between_tries() {
  std::this_thread::sleep_for(kBetweenTries);
}

Listener::Listener(const std::string& address, std::int32_t port) {
  std::string problem = "no address";
  const Addresses found = resolve(address, port, problem);
  for (const addrinfo* one = found.get(); one != nullptr && socket_ < 0; one = one->ai_next) {
    socket_ = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, one->ai_protocol);
    if (socket_ < 0) continue;
    const int on = 1;
    setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(socket_, one->ai_addr, one->ai_addrlen) == 0 && listen(socket_, kBacklog) == 0) {
      address_ = numeric(one->ai_addr, one->ai_addrlen);
      return;
    }
    problem = errno == EADDRNOTAVAIL ? "that is no address of the machine that rank 0 runs on"
                                     : std::strerror(errno);
    close(socket_);
    socket_ = -1;
  }
  throw Error(Errc::unavailable,
              fmt::format("rank 0: listen at MASTER_ADDR {} port {}: {}", address, port, problem));
}

Listener::~Listener() {
  for (const Pending& one : pending_) close(one.socket);
  close(socket_);
}

int Listener::accept_hello(Hello& hello, Deadline deadline) {
  while (true) {
    std::vector<pollfd> ready{{.fd = socket_, .events = POLLIN, .revents = 0}};
    for (const Pending& one : pending_) ready.push_back({.fd = one.socket, .events = POLLIN, .revents = 0});
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    static_cast<void>(
        poll(ready.data(), ready.size(), static_cast<int>(std::clamp<std::int64_t>(left, 0, 1000))));
    const auto now = Clock::now();
    for (std::size_t at = 0; at < pending_.size();) {
      Pending& one = pending_[at];
      auto* to = reinterpret_cast<std::byte*>(&one.hello) + one.got;
      const ssize_t got = recv(one.socket, to, sizeof one.hello - one.got, MSG_DONTWAIT);
      const bool waits = got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
      if (got > 0) one.got += static_cast<std::size_t>(got);
      const bool complete = one.got == sizeof one.hello;
      const bool ill = (got <= 0 && !waits) || (one.got >= sizeof kMagic && one.hello.magic != kMagic) ||
                       now - one.since > kTimeForHello;
      if (!complete && !ill) {
        ++at;
        continue;
      }
      const int socket = one.socket;
      hello = one.hello;
      pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(at));
      if (!ill) {
        set_up(socket);
        return socket;
      }
      close(socket);
    }
    const int socket = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (socket >= 0) pending_.push_back({.socket = socket, .since = now});
    if (now >= deadline) return -1;
  }
}

}  // namespace shunt::tcp

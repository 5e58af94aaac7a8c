#include "bootstrap/tcp_bootstrap.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>

#include <shunt/core/error.h>

#include "bootstrap/tcp_socket.h"

namespace shunt {
namespace {

using namespace std::chrono_literals;
using tcp::Result;

/// Between looks for connections that ended.
constexpr auto kBetweenLooks = 5ms;
/// Of one wait, so that other ranks are looked at meanwhile.
constexpr auto kSlice = 50ms;
constexpr auto kTimeToTell = 500ms;

}  // namespace

TcpBootstrap::TcpBootstrap(const TcpMeeting& meeting, Deadline deadline)
    : meeting_(meeting),
      peers_(static_cast<std::size_t>(meeting.rank == 0 ? meeting.size : 1)),
      excluded_(static_cast<std::size_t>(meeting.size)) {
  if (meeting_.size == 1) return;
  try {
    if (meeting_.rank == 0) {
      gather_ranks(deadline);
    } else {
      join(deadline);
    }
  } catch (...) {
    close_all();
    throw;
  }
}

TcpBootstrap::~TcpBootstrap() {
  const bool failed = std::uncaught_exceptions() > 0;
  const Frame leave{.kind = failed ? Kind::fail : Kind::leave, .rank = meeting_.rank, .bytes = 0};
  for (const Peer& peer : peers_) {
    if (peer.socket >= 0 && !peer.gone)
      static_cast<void>(::send(peer.socket, &leave, sizeof leave, MSG_NOSIGNAL | MSG_DONTWAIT));
  }
  close_all();
}

void TcpBootstrap::close_all() noexcept {
  for (Peer& peer : peers_) {
    if (peer.socket < 0) continue;
    // What is unread at a close would make the system drop what was sent here last.
    char unread[4096];
    shutdown(peer.socket, SHUT_WR);
    while (recv(peer.socket, unread, sizeof unread, MSG_DONTWAIT) > 0) {
    }
    close(peer.socket);
    peer.socket = -1;
  }
}

void TcpBootstrap::gather_ranks(Deadline deadline) {
  tcp::Listener listener(meeting_.address, meeting_.port);
  local_address_ = listener.address();
  std::int32_t missing = meeting_.size - 1;
  while (missing > 0) {
    tcp::Hello hello;
    const int socket = listener.accept_hello(hello, deadline);
    if (socket < 0) {
      std::string names;
      for (std::int32_t rank = 1; rank < meeting_.size; ++rank) {
        if (peers_[static_cast<std::size_t>(rank)].socket < 0) names += fmt::format(" {}", rank);
      }
      std::int32_t first = 1;
      while (peers_[static_cast<std::size_t>(first)].socket >= 0) ++first;
      throw_timeout(first, "start",
                    fmt::format(" (of {} ranks these did not come to {} port {}:{})", meeting_.size,
                                meeting_.address, meeting_.port, names));
    }
    tcp::Welcome welcome;
    const auto refuse = [&](const std::string& why) {
      welcome.answer = tcp::Answer::refused;
      std::strncpy(welcome.why, why.c_str(), sizeof welcome.why - 1);
    };
    if (hello.cookie != meeting_.cookie) {
      refuse("it belongs to another job");
    } else if (hello.generation > meeting_.generation) {
      welcome.answer = tcp::Answer::later;
    } else if (hello.generation < meeting_.generation) {
      refuse(fmt::format("it comes for world {} of this job, but this is world {}", hello.generation,
                         meeting_.generation));
    } else if (hello.size != meeting_.size) {
      refuse(fmt::format("its WORLD_SIZE is {}, and that of rank 0 is {}", hello.size, meeting_.size));
    } else if (hello.rank < 1 || hello.rank >= meeting_.size) {
      refuse(fmt::format("ranks from 1 to {} may come", meeting_.size - 1));
    } else if (peers_[static_cast<std::size_t>(hello.rank)].socket >= 0) {
      refuse("another process is there already as this rank");
    }
    const bool sent =
        tcp::send_all(socket, &welcome, sizeof welcome, Clock::now() + kTimeToTell) == Result::done;
    if (!sent || welcome.answer != tcp::Answer::welcome) {
      close(socket);
      continue;
    }
    peers_[static_cast<std::size_t>(hello.rank)].socket = socket;
    --missing;
  }
}

void TcpBootstrap::join(Deadline deadline) {
  const tcp::Hello hello{.cookie = meeting_.cookie,
                         .size = meeting_.size,
                         .rank = meeting_.rank,
                         .generation = meeting_.generation};
  std::string problem = "nobody listens there";
  while (true) {
    const int socket = tcp::connect_to(meeting_.address, meeting_.port, deadline, problem);
    if (socket >= 0) {
      tcp::Welcome welcome;
      welcome.magic = 0;
      const bool answered = tcp::send_all(socket, &hello, sizeof hello, deadline) == Result::done &&
                            tcp::receive_all(socket, &welcome, sizeof welcome, deadline) == Result::done;
      if (answered && welcome.magic == tcp::kMagic && welcome.answer == tcp::Answer::welcome) {
        peers_[0].socket = socket;
        local_address_ = tcp::own_address(socket);
        return;
      }
      close(socket);
      if (answered && welcome.magic != tcp::kMagic) {
        problem = "something else than rank 0 of this program answers there";
      } else if (answered && welcome.answer == tcp::Answer::refused) {
        welcome.why[sizeof welcome.why - 1] = '\0';
        throw Error(Errc::unavailable,
                    fmt::format("rank {}: refused by rank 0 at {} port {}: {}", meeting_.rank,
                                meeting_.address, meeting_.port, welcome.why));
      }
    }
    if (Clock::now() >= deadline) {
      throw_timeout(0, "start", fmt::format(" at {} port {}: {}", meeting_.address, meeting_.port, problem));
    }
    tcp::pause_between_tries();
  }
}

/// Takes what the peer says outside of exchanges.
void TcpBootstrap::look(Peer& peer, std::int32_t from) noexcept {
  while (peer.socket >= 0 && !peer.left && !peer.gone) {
    Frame frame;
    const ssize_t got = recv(peer.socket, &frame, sizeof frame, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
    if (got <= 0) {
      peer.gone = true;
      if (meeting_.rank == 0 && excluded_[static_cast<std::size_t>(from)] == 0) tell_lost(from);
      return;
    }
    if (got < static_cast<ssize_t>(sizeof frame) || frame.kind == Kind::data) return;
    static_cast<void>(recv(peer.socket, &frame, sizeof frame, MSG_DONTWAIT));
    peer.left = frame.kind == Kind::leave || frame.kind == Kind::fail;
    peer.failed = frame.kind == Kind::fail;
    if (frame.kind == Kind::lost) told_lost_ = frame.rank;
  }
}

void TcpBootstrap::tell_lost(std::int32_t rank) noexcept {
  const Frame frame{.kind = Kind::lost, .rank = rank, .bytes = 0};
  for (std::size_t to = 0; to < peers_.size(); ++to) {
    const Peer& peer = peers_[to];
    if (peer.socket >= 0 && !peer.gone && !peer.left && static_cast<std::int32_t>(to) != rank)
      static_cast<void>(::send(peer.socket, &frame, sizeof frame, MSG_NOSIGNAL | MSG_DONTWAIT));
  }
}

std::int32_t TcpBootstrap::lost() noexcept {
  const auto now = Clock::now();
  if (now >= next_look_) {
    next_look_ = now + kBetweenLooks;
    for (std::size_t peer = 0; peer < peers_.size(); ++peer)
      look(peers_[peer], static_cast<std::int32_t>(peer));
  }
  const auto counts = [&](std::int32_t rank) {
    return rank >= 0 && rank < meeting_.size && excluded_[static_cast<std::size_t>(rank)] == 0;
  };
  if (counts(told_lost_)) return told_lost_;
  for (std::size_t peer = 0; peer < peers_.size(); ++peer) {
    if (peers_[peer].gone && counts(static_cast<std::int32_t>(peer))) return static_cast<std::int32_t>(peer);
  }
  return -1;
}

void TcpBootstrap::exclude(std::span<const std::int32_t> ranks) {
  for (const std::int32_t rank : ranks) excluded_[static_cast<std::size_t>(rank)] = 1;
}

void TcpBootstrap::receive(std::int32_t from, void* to, std::int64_t bytes, Deadline deadline,
                           const char* phase) {
  Peer& peer = peers_[static_cast<std::size_t>(from)];
  while (true) {
    next_look_ = {};
    if (const std::int32_t rank = lost(); rank >= 0) throw_lost(rank, from, phase);
    if (peer.left) throw_lost(from, from, phase);
    pollfd ready{.fd = peer.socket, .events = POLLIN, .revents = 0};
    if (tcp::wait_ready(ready, std::min<Deadline>(deadline, Clock::now() + kSlice))) {
      Frame frame;
      const ssize_t got = recv(peer.socket, &frame, sizeof frame, MSG_PEEK | MSG_DONTWAIT);
      if (got == static_cast<ssize_t>(sizeof frame) && frame.kind == Kind::data) break;
      // Of a frame that has not come whole poll() tells again and again.
      if (got > 0 && got < static_cast<ssize_t>(sizeof frame)) tcp::pause_between_tries();
    }
    if (Clock::now() >= deadline) throw_timeout(from, phase, "");
  }
  Frame frame;
  if (tcp::receive_all(peer.socket, &frame, sizeof frame, deadline) != Result::done)
    throw_lost(from, from, phase);
  if (frame.bytes != bytes) {
    if (meeting_.rank == 0) tell_lost(from);
    throw Error(Errc::internal, fmt::format("rank {}: rank {} brings {} bytes to {} and not {}",
                                            meeting_.rank, from, frame.bytes, phase, bytes));
  }
  const Result result = tcp::receive_all(peer.socket, to, static_cast<std::size_t>(bytes), deadline);
  if (result == Result::timed_out) throw_timeout(from, phase, " (its bytes stopped half way)");
  if (result != Result::done) throw_lost(from, from, phase);
}

void TcpBootstrap::send(std::int32_t to, const Frame& frame, const void* payload, Deadline deadline,
                        const char* phase) {
  Peer& peer = peers_[static_cast<std::size_t>(to)];
  Result result = tcp::send_all(peer.socket, &frame, sizeof frame, deadline);
  if (result == Result::done)
    result = tcp::send_all(peer.socket, payload, static_cast<std::size_t>(frame.bytes), deadline);
  if (result == Result::done) return;
  if (result == Result::timed_out) {
    // Nothing may follow a part of a frame.
    peer.gone = true;
    throw_timeout(to, phase, " (it takes no more bytes)");
  }
  // Why it ended may have come before.
  next_look_ = {};
  const std::int32_t rank = lost();
  throw_lost(rank >= 0 ? rank : to, to, phase);
}

void TcpBootstrap::allgather(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                             const char* phase) {
  started_ = Clock::now();
  auto* records = static_cast<std::byte*>(all);
  if (meeting_.rank != 0) {
    send(0, {.kind = Kind::data, .rank = meeting_.rank, .bytes = bytes}, mine, deadline, phase);
    receive(0, all, bytes * meeting_.size, deadline, phase);
    return;
  }
  std::memcpy(records, mine, static_cast<std::size_t>(bytes));
  for (std::int32_t rank = 1; rank < meeting_.size; ++rank)
    receive(rank, records + rank * bytes, bytes, deadline, phase);
  for (std::int32_t rank = 1; rank < meeting_.size; ++rank)
    send(rank, {.kind = Kind::data, .rank = 0, .bytes = bytes * meeting_.size}, all, deadline, phase);
}

void TcpBootstrap::throw_lost(std::int32_t rank, std::int32_t awaited, const char* phase) {
  // Before the farewell of rank 0, for which the others would blame it.
  if (meeting_.rank == 0) tell_lost(rank);
  const auto at = static_cast<std::size_t>(rank);
  const bool failed = at < peers_.size() && peers_[at].failed;
  throw Error(Errc::peer_lost,
              fmt::format("rank {}: lost rank {} ({}) while waiting for rank {} in {}", meeting_.rank, rank,
                          failed ? "it ended with an error" : "its connection ended", awaited, phase),
              rank);
}

void TcpBootstrap::throw_timeout(std::int32_t awaited, const char* phase, const std::string& more) {
  if (meeting_.rank == 0) tell_lost(awaited);
  throw Error(Errc::timeout,
              fmt::format("rank {}: timed out after {} ms waiting for rank {} in {}{}", meeting_.rank,
                          std::chrono::round<std::chrono::milliseconds>(Clock::now() - started_).count(),
                          awaited, phase, more),
              awaited);
}

}  // namespace shunt

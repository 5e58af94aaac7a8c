#pragma once

#include <poll.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <shunt/transport/transport.h>

namespace shunt::tcp {

inline constexpr std::uint64_t kMagic = 0x31746e756873ULL;  // "shunt1"

/// First words of a rank, and the answer. Between machines of one byte order.
struct Hello {
  std::uint64_t magic = kMagic;
  std::uint64_t cookie = 0;
  std::int32_t size = 0;
  std::int32_t rank = 0;
  std::uint32_t generation = 0;
  std::uint32_t unused = 0;
};
enum class Answer : std::uint32_t { welcome = 1, later, refused };
struct Welcome {
  std::uint64_t magic = kMagic;
  Answer answer = Answer::welcome;
  char why[244] = {};
};

enum class Result : std::uint8_t { done, ended, timed_out };

[[nodiscard]] bool wait_ready(pollfd& ready, Deadline deadline);
[[nodiscard]] Result send_all(int socket, const void* data, std::size_t bytes, Deadline deadline);
[[nodiscard]] Result receive_all(int socket, void* data, std::size_t bytes, Deadline deadline);
/// One try. Result: a socket that does not block, or -1 with the reason in `problem`.
[[nodiscard]] int connect_to(const std::string& address, std::int32_t port, Deadline deadline,
                             std::string& problem);
[[nodiscard]] std::string own_address(int socket);
void pause_between_tries();

/// Listens at one address. What connects and does not say Hello is ignored.
class Listener {
 public:
  /// Errors: Errc::unavailable.
  Listener(const std::string& address, std::int32_t port);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  [[nodiscard]] const std::string& address() const noexcept { return address_; }
  /// The next connection that has said Hello, or -1 at the deadline.
  [[nodiscard]] int accept_hello(Hello& hello, Deadline deadline);

 private:
  struct Pending {
    int socket = -1;
    std::size_t got = 0;
    Hello hello = {};
    Clock::time_point since = {};
  };
  int socket_ = -1;
  std::string address_;
  std::vector<Pending> pending_;
};

}  // namespace shunt::tcp

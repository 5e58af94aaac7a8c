#pragma once

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace shunt::testing_support {

/// Moves this process (and what it forks from now on) into a network namespace of its own in which only the
/// loopback interface is up, so that sockets of a test reach nobody else and nobody reaches them. The first
/// call does it, later ones repeat its answer; the namespace ends with its last process.
/// Result:  empty, or why it cannot be (for GTEST_SKIP).
/// Threads: call before the process starts any; a thread that runs already stays where it is.
[[nodiscard]] inline const std::string& enter_network_namespace() {
  static const std::string reason = []() -> std::string {
    if (unshare(CLONE_NEWNET) != 0) {
      return std::string("no network namespace of its own (needs root): ") + std::strerror(errno);
    }
    const int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (socket_fd < 0) return std::string("no socket in the new network namespace: ") + std::strerror(errno);
    ifreq request{};
    std::strncpy(request.ifr_name, "lo", IFNAMSIZ - 1);
    bool up = ioctl(socket_fd, SIOCGIFFLAGS, &request) == 0;
    if (up) {
      request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP | IFF_RUNNING);
      up = ioctl(socket_fd, SIOCSIFFLAGS, &request) == 0;
    }
    const int error = errno;
    close(socket_fd);
    return up ? std::string{} : std::string("loopback interface did not come up: ") + std::strerror(error);
  }();
  return reason;
}

}  // namespace shunt::testing_support

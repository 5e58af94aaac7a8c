#include "cuda_ipc/file_exchange.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <random>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::cuda_ipc {
namespace {

struct Message {
  std::uint64_t cookie = 0;
  std::uint64_t serial = 0;
  std::int32_t from = 0;
  std::int32_t unused = 0;
};

/// Room for the descriptor that goes with a message.
union Control {
  char bytes[CMSG_SPACE(sizeof(int))];
  cmsghdr aligned;
};

[[noreturn]] void fail(const char* what) {
  throw Error(Errc::unavailable, fmt::format("a local socket, over which GPU memory is shared, {}: {}", what,
                                             std::strerror(errno)));
}

}  // namespace

FileExchange::FileExchange() {
  socket_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (socket_ < 0) fail("cannot be made");
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  // Without a path the kernel chooses a name that is in no file system and is gone with the socket.
  socklen_t bytes = sizeof(sa_family_t);
  if (bind(socket_, reinterpret_cast<const sockaddr*>(&name), bytes) != 0) {
    close(socket_);
    fail("cannot be bound");
  }
  bytes = sizeof name;
  if (getsockname(socket_, reinterpret_cast<sockaddr*>(&name), &bytes) != 0) {
    close(socket_);
    fail("has no name");
  }
  std::random_device random;
  address_.cookie = std::uint64_t{random()} << 32 | random();
  address_.bytes = std::min(static_cast<std::int32_t>(bytes) - static_cast<std::int32_t>(sizeof(sa_family_t)),
                            static_cast<std::int32_t>(sizeof address_.name));
  std::memcpy(address_.name, name.sun_path, static_cast<std::size_t>(address_.bytes));
}

FileExchange::~FileExchange() {
  collect();
  for (const auto& [key, file] : arrived_) close(file);
  close(socket_);
}

void FileExchange::send(const Address& to, std::int32_t from, std::uint64_t serial, int file) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, to.name, static_cast<std::size_t>(to.bytes));
  Message message{.cookie = to.cookie, .serial = serial, .from = from};
  iovec part{.iov_base = &message, .iov_len = sizeof message};
  Control control{};
  msghdr header{};
  header.msg_name = &name;
  header.msg_namelen = static_cast<socklen_t>(sizeof(sa_family_t)) + static_cast<socklen_t>(to.bytes);
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof control.bytes;
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(rights), &file, sizeof file);
  while (sendmsg(socket_, &header, MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) fail("takes no message");
  }
}

void FileExchange::collect() {
  while (true) {
    Message message;
    iovec part{.iov_base = &message, .iov_len = sizeof message};
    Control control{};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control.bytes;
    header.msg_controllen = sizeof control.bytes;
    const ssize_t got = recvmsg(socket_, &header, MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return;
    int file = -1;
    const cmsghdr* rights = CMSG_FIRSTHDR(&header);
    if (rights != nullptr && rights->cmsg_level == SOL_SOCKET && rights->cmsg_type == SCM_RIGHTS &&
        rights->cmsg_len == CMSG_LEN(sizeof(int)))
      std::memcpy(&file, CMSG_DATA(rights), sizeof file);
    if (file < 0) continue;
    const bool known = got == static_cast<ssize_t>(sizeof message) && message.cookie == address_.cookie;
    // What is not for this rank, or comes twice, is dropped.
    if (!known || !arrived_.emplace(std::pair(message.from, message.serial), file).second) close(file);
  }
}

int FileExchange::take(std::int32_t from, std::uint64_t serial) {
  collect();
  const auto found = arrived_.find({from, serial});
  if (found == arrived_.end()) return -1;
  const int file = found->second;
  arrived_.erase(found);
  return file;
}

}  // namespace shunt::cuda_ipc

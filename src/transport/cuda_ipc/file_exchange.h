#pragma once

#include <cstdint>
#include <map>
#include <utility>

namespace shunt::cuda_ipc {

/// Hands open files from one process of a machine to another. The sockets are local ones (Unix domain, of this network
/// namespace), bound to names that the kernel chooses; a message counts only with the receiver's own random number.
/// Threads: as Transport.
class FileExchange {
 public:
  struct Address {
    std::uint64_t cookie = 0;
    std::int32_t bytes = 0;
    char name[32] = {};
  };

  /// Errors: Errc::unavailable.
  FileExchange();
  ~FileExchange();
  FileExchange(const FileExchange&) = delete;
  FileExchange& operator=(const FileExchange&) = delete;

  [[nodiscard]] const Address& address() const noexcept { return address_; }
  /// Few messages may wait at one receiver: at most kMostWaiting between two collect().
  static constexpr std::int32_t kMostWaiting = 8;
  /// `from` is the sending rank and `serial` what the two sides agree on. `file` stays the caller's. Never waits.
  /// Errors: Errc::unavailable with errno's words.
  void send(const Address& to, std::int32_t from, std::uint64_t serial, int file);
  /// The file that rank `from` has sent under `serial`, or -1; the caller closes it. Never waits.
  [[nodiscard]] int take(std::int32_t from, std::uint64_t serial);

 private:
  void collect();

  int socket_ = -1;
  Address address_;
  std::map<std::pair<std::int32_t, std::uint64_t>, int> arrived_;
};

}  // namespace shunt::cuda_ipc

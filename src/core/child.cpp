#include <shunt/core/child.h>

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>

namespace shunt {
namespace {

/// Last byte of an answer: an answer that stops before it is that of a child that died.
constexpr char kEnd = '\0';

[[noreturn]] void answer(const std::function<std::string()>& question, int to) {
  try {
    std::string text = question();
    text.erase(std::remove(text.begin(), text.end(), kEnd), text.end());
    text += kEnd;
    for (std::size_t at = 0; at < text.size();) {
      const ssize_t written = write(to, text.data() + at, text.size() - at);
      if (written < 0 && errno != EINTR) break;
      at += static_cast<std::size_t>(std::max<ssize_t>(written, 0));
    }
  } catch (...) {
    // No answer.
  }
  _exit(0);
}

}  // namespace

std::optional<std::string> ask_in_child(const std::function<std::string()>& question,
                                        std::chrono::milliseconds limit) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return std::nullopt;
  const pid_t child = fork();
  if (child == 0) answer(question, ends[1]);
  close(ends[1]);
  std::string text;
  const auto end = std::chrono::steady_clock::now() + limit;
  while (child > 0) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd ready{.fd = ends[0], .events = POLLIN, .revents = 0};
    const int changed = poll(&ready, 1, static_cast<int>(std::max<std::int64_t>(left.count(), 0)));
    if (changed < 0 && errno == EINTR) continue;
    if (changed <= 0) break;
    std::array<char, 4096> piece{};
    const ssize_t got = read(ends[0], piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(piece.data(), static_cast<std::size_t>(got));
    // Not its end of file: what it left running may hold the pipe too.
    if (text.back() == kEnd) break;
  }
  close(ends[0]);
  if (child <= 0) return std::nullopt;
  // What it left running in exit paths of its own is of no use either.
  kill(child, SIGKILL);
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (text.empty() || text.back() != kEnd) return std::nullopt;
  text.pop_back();
  return text;
}

}  // namespace shunt

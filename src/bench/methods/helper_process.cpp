#include "helper_process.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <thread>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::bench {
namespace {

constexpr int kMemory = 3;
constexpr int kAbove = 10;  // where descriptors wait until theirs is free

/// In the child, between fork and exec: async-signal-safe calls only.
[[noreturn]] void become(char* const* arguments, pid_t parent, int input, int text, int memory) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // it died before it could take this process along
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  std::signal(SIGPIPE, SIG_DFL);
  const int from[] = {fcntl(input, F_DUPFD, kAbove), fcntl(text, F_DUPFD, kAbove),
                      memory < 0 ? -1 : fcntl(memory, F_DUPFD, kAbove)};
  if (dup2(from[0], STDIN_FILENO) < 0 || dup2(from[1], STDOUT_FILENO) < 0 ||
      dup2(from[1], STDERR_FILENO) < 0 || (memory >= 0 && dup2(from[2], kMemory) < 0))
    _exit(127);
  syscall(SYS_close_range, static_cast<unsigned>(memory < 0 ? kMemory : kMemory + 1), UINT_MAX, 0U);
  execvp(arguments[0], arguments);
  const char* const why = std::strerror(errno);
  static_cast<void>(!write(STDERR_FILENO, why, std::strlen(why)));
  _exit(127);
}

}  // namespace

HelperProcess::HelperProcess(const std::vector<std::string>& command, int memory) {
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    throw Error(Errc::unavailable, fmt::format("{}: socketpair: {}", command[0], std::strerror(errno)));
  text_ = memfd_create("shunt-helper-text", MFD_CLOEXEC);
  std::vector<char*> arguments;
  for (const std::string& one : command) arguments.push_back(const_cast<char*>(one.c_str()));
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  process_ = text_ < 0 ? -1 : fork();
  if (process_ == 0) become(arguments.data(), parent, ends[1], text_, memory);
  const int error = errno;
  close(ends[1]);
  input_ = ends[0];
  if (process_ > 0) return;
  close(input_);
  if (text_ >= 0) close(text_);
  throw Error(Errc::unavailable, fmt::format("{} cannot be started: {}", command[0], std::strerror(error)));
}

HelperProcess::~HelperProcess() {
  close(input_);
  if (!wait(std::chrono::seconds(1))) kill();
  wait(std::chrono::seconds(10));
  close(text_);
}

void HelperProcess::wake() const noexcept {
  const char byte = 0;
  static_cast<void>(!send(input_, &byte, 1, MSG_NOSIGNAL | MSG_DONTWAIT));
}

bool HelperProcess::ended() noexcept {
  if (!ended_) ended_ = waitpid(process_, &status_, WNOHANG) == process_;
  return ended_;
}

bool HelperProcess::wait(std::chrono::milliseconds limit) {
  const auto until = std::chrono::steady_clock::now() + limit;
  while (!ended()) {
    if (std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

void HelperProcess::kill() noexcept {
  if (!ended()) ::kill(process_, SIGKILL);
}

int HelperProcess::status() noexcept {
  if (!ended()) return -1;
  return WIFSIGNALED(status_) ? 128 + WTERMSIG(status_) : WEXITSTATUS(status_);
}

std::string HelperProcess::state() noexcept {
  if (!ended()) return "is running";
  if (WIFSIGNALED(status_))
    return fmt::format("was killed by signal {} ({})", WTERMSIG(status_), strsignal(WTERMSIG(status_)));
  return fmt::format("ended with status {}", WEXITSTATUS(status_));
}

std::string HelperProcess::last_lines() const {
  constexpr std::size_t kLines = 2;
  constexpr std::size_t kLongest = 300;
  std::array<char, 2000> bytes{};
  const off_t size = lseek(text_, 0, SEEK_END);
  const ssize_t got =
      pread(text_, bytes.data(), bytes.size(), std::max<off_t>(0, size - static_cast<off_t>(bytes.size())));
  const std::string text(bytes.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
  std::string lines;
  std::size_t found = 0;
  for (std::size_t end = text.size(); end > 0 && found < kLines;) {
    const std::size_t before = text.rfind('\n', end - 1);
    const std::size_t begin = before == std::string::npos ? 0 : before + 1;
    std::string line = text.substr(begin, end - begin);
    const std::size_t first = line.find_first_not_of(" \t\r");
    if (first != std::string::npos) {
      lines.insert(0, line.substr(first) + (found == 0 ? "" : " | "));
      ++found;
    }
    if (begin == 0) break;
    end = begin - 1;
  }
  // The end says most, as of an error of Python.
  return lines.size() <= kLongest ? lines : "…" + lines.substr(lines.size() - kLongest);
}

}  // namespace shunt::bench

#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::scenario {
namespace {

/// Arguments as execvp takes them. Ownership: borrows the words.
std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> list;
  for (const std::string& word : words) list.push_back(const_cast<char*>(word.c_str()));
  list.push_back(nullptr);
  return list;
}

/// The environment with variables set, as NAME=VALUE.
std::vector<std::string> environment_with(const std::vector<std::pair<std::string, std::string>>& variables) {
  std::vector<std::string> all;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string pair = *entry;
    bool replaced = false;
    for (const auto& [name, value] : variables) replaced = replaced || pair.starts_with(name + "=");
    if (!replaced) all.push_back(pair);
  }
  for (const auto& [name, value] : variables) all.push_back(name + "=" + value);
  return all;
}

/// After fork: signals as a program expects them.
void reset_signals() {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGCHLD})
    (void)::signal(signal, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  (void)sigprocmask(SIG_SETMASK, &none, nullptr);
}

[[noreturn]] void give_up(int report) {
  const int reason = errno;
  (void)!write(report, &reason, sizeof reason);
  _exit(127);
}

}  // namespace

pid_t start_process(const ProcessStart& start) {
  const std::string out = start.folder + "/stdout.txt";
  const std::string err = start.folder + "/stderr.txt";
  // The variables are made before the fork: memory is not to be asked for between fork and exec.
  const std::vector<std::string> variables = environment_with(start.variables);
  std::vector<char*> environment = pointers(variables);
  std::vector<char*> words = pointers(start.words);
  std::array<int, 2> report{};
  if (pipe2(report.data(), O_CLOEXEC) != 0)
    throw Error(Errc::io, fmt::format("cannot start {}: {}", start.words[0], std::strerror(errno)));
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    // Whatever ends this process must not leave the test behind.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    reset_signals();
    const int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
    const int output = open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    const int errors = open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (input < 0 || output < 0 || errors < 0 || dup2(input, 0) < 0 || dup2(output, 1) < 0 ||
        dup2(errors, 2) < 0 || chdir(start.folder.c_str()) != 0)
      give_up(report[1]);
    execvpe(words[0], words.data(), environment.data());
    give_up(report[1]);
  }
  close(report[1]);
  if (child < 0) {
    close(report[0]);
    throw Error(Errc::io, fmt::format("cannot start {}: {}", start.words[0], std::strerror(errno)));
  }
  setpgid(child, child);
  int reason = 0;
  ssize_t got = 0;
  do got = read(report[0], &reason, sizeof reason);
  while (got < 0 && errno == EINTR);
  close(report[0]);
  if (got == static_cast<ssize_t>(sizeof reason)) {
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    throw Error(Errc::unavailable, fmt::format("cannot start {}: {}", start.words[0], std::strerror(reason)));
  }
  return child;
}

Output output_of(const std::vector<std::string>& words, std::chrono::milliseconds limit) {
  Output output;
  std::array<int, 2> out{};
  std::array<int, 2> err{};
  if (pipe2(out.data(), O_CLOEXEC) != 0) return output;
  if (pipe2(err.data(), O_CLOEXEC) != 0) {
    close(out[0]);
    close(out[1]);
    return output;
  }
  std::vector<char*> list = pointers(words);
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    reset_signals();
    const int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
    dup2(input, 0);
    dup2(out[1], 1);
    dup2(err[1], 2);
    execvp(list[0], list.data());
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  const auto end = std::chrono::steady_clock::now() + limit;
  std::array<pollfd, 2> ends = {pollfd{out[0], POLLIN, 0}, pollfd{err[0], POLLIN, 0}};
  bool late = false;
  while (child > 0 && (ends[0].fd >= 0 || ends[1].fd >= 0)) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0) {
      late = true;
      break;
    }
    if (poll(ends.data(), ends.size(), static_cast<int>(left.count())) < 0 && errno != EINTR) break;
    for (std::size_t i = 0; i < ends.size(); ++i) {
      if (ends[i].fd < 0 || ends[i].revents == 0) continue;
      std::array<char, 4096> piece{};
      const ssize_t got = read(ends[i].fd, piece.data(), piece.size());
      if (got > 0)
        (i == 0 ? output.out : output.err).append(piece.data(), static_cast<std::size_t>(got));
      else if (got == 0 || errno != EINTR)
        ends[i].fd = -1;
    }
  }
  close(out[0]);
  close(err[0]);
  if (child <= 0) return output;
  if (late) kill(-child, SIGKILL);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  output.status = late ? 124 : WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return output;
}

}  // namespace shunt::scenario

#include "process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <thread>

namespace shunt::cli {
namespace {

std::string read_all(std::FILE* file) {
  std::string text;
  std::rewind(file);
  char block[4096];
  for (std::size_t got = 0; (got = std::fread(block, 1, sizeof block, file)) > 0;) text.append(block, got);
  return text;
}

struct Running {
  pid_t child = -1;
  std::FILE* out = nullptr;
  std::FILE* err = nullptr;
};

Running start(const std::string& program, const std::vector<std::string>& arguments,
              const std::string& directory, const std::vector<std::string>& environment) {
  Running running{.out = std::tmpfile(), .err = std::tmpfile()};
  if (running.out == nullptr || running.err == nullptr) throw std::runtime_error("tmpfile failed");
  running.child = fork();
  if (running.child != 0) return running;
  dup2(fileno(running.out), STDOUT_FILENO);
  dup2(fileno(running.err), STDERR_FILENO);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (!directory.empty() && chdir(directory.c_str()) != 0) _exit(127);
  std::vector<std::string> own = environment;
  for (std::string& variable : own) putenv(variable.data());
  std::vector<char*> words{const_cast<char*>(program.c_str())};
  for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
  words.push_back(nullptr);
  execvp(program.c_str(), words.data());
  _exit(127);
}

Ended finish(const Running& running) {
  int status = 0;
  waitpid(running.child, &status, 0);
  Ended ended;
  ended.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  ended.out = read_all(running.out);
  ended.err = read_all(running.err);
  std::fclose(running.out);
  std::fclose(running.err);
  return ended;
}

/// Whether the process has ended; it stays to be waited for.
bool has_ended(pid_t child) {
  siginfo_t info{};
  return waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid != 0;
}

}  // namespace

Ended run_shunt(const std::vector<std::string>& arguments, const std::string& directory,
                const std::vector<std::string>& environment) {
  return finish(start(SHUNT_COMMAND, arguments, directory, environment));
}

Ended run_program(const std::vector<std::string>& words, const std::string& directory,
                  const std::vector<std::string>& environment) {
  return finish(start(words.at(0), {words.begin() + 1, words.end()}, directory, environment));
}

std::vector<Ended> run_job(const std::vector<Member>& members, const std::vector<std::string>& arguments,
                           const std::string& directory, int seconds) {
  std::vector<Running> running;
  for (const Member& member : members) {
    std::vector<std::string> words = arguments;
    words.insert(words.end(), member.arguments.begin(), member.arguments.end());
    running.push_back(start(SHUNT_COMMAND, words, directory, member.environment));
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  const auto all_ended = [&] {
    return std::all_of(running.begin(), running.end(),
                       [](const Running& one) { return has_ended(one.child); });
  };
  while (!all_ended() && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::vector<Ended> ended;
  for (const Running& one : running) {
    if (!has_ended(one.child)) kill(one.child, SIGKILL);
    ended.push_back(finish(one));
  }
  return ended;
}

}  // namespace shunt::cli

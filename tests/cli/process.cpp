#include "process.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace shunt::cli {
namespace {

std::string read_all(std::FILE* file) {
  std::string text;
  std::rewind(file);
  char block[4096];
  for (std::size_t got = 0; (got = std::fread(block, 1, sizeof block, file)) > 0;) text.append(block, got);
  return text;
}

}  // namespace

Ended run_shunt(const std::vector<std::string>& arguments, const std::string& directory,
                const std::vector<std::string>& environment) {
  std::FILE* out = std::tmpfile();
  std::FILE* err = std::tmpfile();
  if (out == nullptr || err == nullptr) throw std::runtime_error("tmpfile failed");
  const pid_t child = fork();
  if (child == 0) {
    dup2(fileno(out), STDOUT_FILENO);
    dup2(fileno(err), STDERR_FILENO);
    if (!directory.empty() && chdir(directory.c_str()) != 0) _exit(127);
    std::vector<std::string> own = environment;
    for (std::string& variable : own) putenv(variable.data());
    std::vector<char*> words{const_cast<char*>(SHUNT_COMMAND)};
    for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
    words.push_back(nullptr);
    execv(SHUNT_COMMAND, words.data());
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  Ended ended;
  ended.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  ended.out = read_all(out);
  ended.err = read_all(err);
  std::fclose(out);
  std::fclose(err);
  return ended;
}

}  // namespace shunt::cli

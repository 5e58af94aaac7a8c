#pragma once

#include <string>
#include <vector>

namespace shunt::cli {

struct Ended {
  int status = -1;  ///< Exit status; 128 + signal
  std::string out;
  std::string err;
};

/// A process of a job: what it adds to the environment, and to the arguments that all have.
struct Member {
  std::vector<std::string> environment;
  std::vector<std::string> arguments = {};
};

/// Runs the command once for each member, all at the same time, as processes of one job; returns when all have
/// ended. A member still running after `seconds` is killed.
std::vector<Ended> run_job(const std::vector<Member>& members, const std::vector<std::string>& arguments,
                           const std::string& directory = "", int seconds = 120);

/// Runs the command with `arguments`, in `directory` where not empty, with NAME=VALUE added to the
/// environment.
Ended run_shunt(const std::vector<std::string>& arguments, const std::string& directory = "",
                const std::vector<std::string>& environment = {});

/// The same for any program on the PATH; words[0] is its name. Status 127 where there is none.
Ended run_program(const std::vector<std::string>& words, const std::string& directory = "",
                  const std::vector<std::string>& environment = {});

}  // namespace shunt::cli

#pragma once

#include <string>
#include <vector>

namespace shunt::cli {

struct Ended {
  int status = -1;  ///< Exit status; 128 + signal
  std::string out;
  std::string err;
};

/// Runs the command with `arguments`, in `directory` where not empty, with NAME=VALUE added to the
/// environment.
Ended run_shunt(const std::vector<std::string>& arguments, const std::string& directory = "",
                const std::vector<std::string>& environment = {});

}  // namespace shunt::cli

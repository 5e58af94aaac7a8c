#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <alltoall/sweep_case.h>

namespace shunt::programs {

/// A case with a name: what pplx-kernels' tests try, in C++ and in Python, and what they do not.
struct NamedCase {
  std::string name;
  sweep::SweepCase what;
  bool put_only = false;  ///< As if no rank could load another's memory
};

/// The cases for `ranks` ranks.
[[nodiscard]] std::vector<NamedCase> named_cases(std::int32_t ranks);

}  // namespace shunt::programs

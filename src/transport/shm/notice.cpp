#include "shm/notice.h"

#include <array>
#include <cstddef>
#include <cstring>

namespace shunt::shm {
namespace {

constexpr std::array<const char*, 12> kPhases = {"a wait",    "start",    "allocate",  "barrier",
                                                 "allgather", "alltoall", "alltoallv", "dispatch",
                                                 "combine",   "put",      "quiet",     "agreement"};

}  // namespace

std::uint8_t phase_number(const char* phase) noexcept {
  for (std::size_t number = 1; number < kPhases.size(); ++number) {
    if (std::strcmp(phase, kPhases[number]) == 0) return static_cast<std::uint8_t>(number);
  }
  return 0;
}

const char* phase_name(std::uint8_t number) noexcept {
  return kPhases[number < kPhases.size() ? number : 0];
}

}  // namespace shunt::shm

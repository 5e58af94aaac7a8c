#pragma once

#include <cstdint>

namespace shunt::device {

/// What one lane loads or stores with one instruction: 16 bytes at an address that is a multiple of 16.
struct alignas(16) Word16 {
  std::uint32_t word[4];
};

}  // namespace shunt::device

#pragma once

#include <cstdint>

namespace shunt {

/// Bytes at the start of a row that are worth asking for before the row's turn comes: a kernel's own
/// prefetches reach only as far as the row it works on, and hardware prefetchers need some lines to find a
/// new one.
inline constexpr std::int64_t kRowStart = 512;

/// Asks for the start of a row that will soon be read. Any address is allowed; nothing is read.
inline void prefetch_to_read(const void* row, std::int64_t bytes = kRowStart) noexcept {
  const auto* line = static_cast<const char*>(row);
  for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(line + at);
}

/// Likewise for a row that will soon be written.
inline void prefetch_to_write(void* row, std::int64_t bytes = kRowStart) noexcept {
  auto* line = static_cast<char*>(row);
  for (std::int64_t at = 0; at < bytes; at += 64) {
#if defined(__x86_64__)
    // Compilers emit a read prefetch unless told of the CPU. Where the instruction is not known it does
    // nothing.
    __asm__ volatile("prefetchw %0" ::"m"(line[at]));
#else
    __builtin_prefetch(line + at, 1);
#endif
  }
}

}  // namespace shunt

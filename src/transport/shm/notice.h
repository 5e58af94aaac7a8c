#pragma once

#include <cstdint>

namespace shunt::shm {

/// What a rank tells the others about its waits and its end, in one word, so that it fits a signal.
enum class NoticeKind : std::uint8_t {
  none,
  waiting,   ///< For Notice::rank, and alive: repeated while it lasts
  gave_up,   ///< Ended by a timeout, and no rank was to blame: they waited for each other
  accuses,   ///< Ended by a timeout, of which Notice::rank is the cause
  finished,  ///< Its body returned
  failed,    ///< Its body threw
};

struct Notice {
  NoticeKind kind = NoticeKind::none;
  std::int32_t rank = -1;
  std::uint8_t phase = 0;  ///< See phase_name()
};

/// Packed, so that a later notice of one rank (a larger `number`) is a larger word.
[[nodiscard]] constexpr std::uint64_t pack_notice(std::uint32_t number, const Notice& notice) noexcept {
  return static_cast<std::uint64_t>(number) << 32 | static_cast<std::uint64_t>(notice.kind) << 28 |
         static_cast<std::uint64_t>(notice.phase) << 20 |
         (static_cast<std::uint64_t>(notice.rank + 1) & 0xfffff);
}
[[nodiscard]] constexpr Notice unpack_notice(std::uint64_t word) noexcept {
  return {.kind = static_cast<NoticeKind>(word >> 28 & 0xf),
          .rank = static_cast<std::int32_t>(word & 0xfffff) - 1,
          .phase = static_cast<std::uint8_t>(word >> 20 & 0xff)};
}

/// Number of a phase; phases that are not known share one name.
[[nodiscard]] std::uint8_t phase_number(const char* phase) noexcept;
[[nodiscard]] const char* phase_name(std::uint8_t number) noexcept;

}  // namespace shunt::shm

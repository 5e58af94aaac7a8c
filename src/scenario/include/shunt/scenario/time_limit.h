#pragma once

#include <chrono>
#include <string>
#include <string_view>

namespace shunt::scenario {

/// Whose meaning of a time limit counts where the two differ.
enum class TimeStyle {
  strict,   ///< What both read alike, or only one of them reads; what they read differently is refused.
  cloudai,  ///< 30s 10m 1h 2d 1w, HH:MM, HH:MM:SS, D-HH:MM:SS
  slurm,    ///< M, M:SS, H:MM:SS, D-H, D-H:MM, D-H:MM:SS
};

/// Seconds that a limit stands for.
/// Errors: Errc::invalid_argument with the forms that are allowed; for "10:00" in the strict style with both readings.
[[nodiscard]] std::chrono::seconds parse_time_limit(std::string_view text,
                                                    TimeStyle style = TimeStyle::strict);

/// [D-]HH:MM:SS, which both read alike.
[[nodiscard]] std::string format_time_limit(std::chrono::seconds limit);

}  // namespace shunt::scenario

#include <shunt/scenario/time_limit.h>

#include <cctype>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::scenario {
namespace {

using Seconds = std::chrono::seconds;

constexpr std::int64_t kMinute = 60;
constexpr std::int64_t kHour = 60 * kMinute;
constexpr std::int64_t kDay = 24 * kHour;
/// No number of a limit has more digits, so that sums of them cannot overflow.
constexpr std::size_t kDigits = 9;

constexpr const char* kAllowed =
    "allowed are 30s, 10m, 1h, 2d, 1w, HH:MM:SS, D-HH:MM:SS, and Slurm's minutes, D-HH and D-HH:MM";

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("time limit \"{}\": {}", text, why));
}

/// The numbers between colons; nothing where a part is not a number.
std::optional<std::vector<std::int64_t>> numbers(std::string_view text) {
  std::vector<std::int64_t> found;
  std::int64_t value = 0;
  std::size_t digits = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i == text.size() || text[i] == ':') {
      if (digits == 0 || digits > kDigits) return std::nullopt;
      found.push_back(value);
      value = 0;
      digits = 0;
    } else if (std::isdigit(static_cast<unsigned char>(text[i])) != 0) {
      if (++digits <= kDigits) value = value * 10 + (text[i] - '0');
    } else {
      return std::nullopt;
    }
  }
  return found;
}

std::int64_t unit_seconds(char unit) {
  switch (std::tolower(static_cast<unsigned char>(unit))) {
    case 's':
      return 1;
    case 'm':
      return kMinute;
    case 'h':
      return kHour;
    case 'd':
      return kDay;
    case 'w':
      return 7 * kDay;
    default:
      return 0;
  }
}

std::optional<std::int64_t> clock_seconds(const std::vector<std::int64_t>& parts) {
  if (parts.size() != 3) return std::nullopt;
  return parts[0] * kHour + parts[1] * kMinute + parts[2];
}

/// What CloudAI makes of it; nothing where it refuses.
std::optional<std::int64_t> read_as_cloudai(std::string_view text) {
  if (text.empty()) return std::nullopt;
  if (const std::int64_t unit = unit_seconds(text.back()); unit != 0) {
    const auto count = numbers(text.substr(0, text.size() - 1));
    if (!count || count->size() != 1) return std::nullopt;
    return count->front() * unit;
  }
  std::int64_t days = 0;
  const std::size_t dash = text.find('-');
  if (dash != std::string_view::npos) {
    const auto count = numbers(text.substr(0, dash));
    if (!count || count->size() != 1) return std::nullopt;
    days = count->front() * kDay;
  }
  const auto parts = numbers(dash == std::string_view::npos ? text : text.substr(dash + 1));
  if (!parts) return std::nullopt;
  if (const auto seconds = clock_seconds(*parts)) return days + *seconds;
  if (dash == std::string_view::npos && parts->size() == 2)
    return (*parts)[0] * kHour + (*parts)[1] * kMinute;
  return std::nullopt;
}

/// What Slurm makes of it; nothing where it refuses.
std::optional<std::int64_t> read_as_slurm(std::string_view text) {
  const std::size_t dash = text.find('-');
  if (dash != std::string_view::npos) {
    const auto count = numbers(text.substr(0, dash));
    auto parts = numbers(text.substr(dash + 1));
    if (!count || count->size() != 1 || !parts || parts->size() > 3) return std::nullopt;
    parts->resize(3, 0);
    return count->front() * kDay + *clock_seconds(*parts);
  }
  const auto parts = numbers(text);
  if (!parts) return std::nullopt;
  if (parts->size() == 1) return (*parts)[0] * kMinute;
  if (parts->size() == 2) return (*parts)[0] * kMinute + (*parts)[1];
  return clock_seconds(*parts);
}

}  // namespace

Seconds parse_time_limit(std::string_view text, TimeStyle style) {
  const auto cloudai = read_as_cloudai(text);
  const auto slurm = read_as_slurm(text);
  if (style == TimeStyle::strict && cloudai && slurm && *cloudai != *slurm)
    refuse(text, fmt::format("CloudAI reads {} and Slurm reads {}; write it as [D-]HH:MM:SS, or set "
                             "time_limit_style to \"cloudai\" or \"slurm\"",
                             format_time_limit(Seconds(*cloudai)), format_time_limit(Seconds(*slurm))));
  const auto seconds = style == TimeStyle::cloudai ? cloudai
                       : style == TimeStyle::slurm ? slurm
                       : cloudai                   ? cloudai
                                                   : slurm;
  if (!seconds) refuse(text, kAllowed);
  if (*seconds == 0) refuse(text, "it allows no time at all; it must be at least one second");
  return Seconds(*seconds);
}

std::string format_time_limit(Seconds limit) {
  const std::int64_t total = limit.count();
  const std::string clock =
      fmt::format("{:02}:{:02}:{:02}", total % kDay / kHour, total % kHour / kMinute, total % kMinute);
  return total >= kDay ? fmt::format("{}-{}", total / kDay, clock) : clock;
}

}  // namespace shunt::scenario

#include <charconv>
#include <cmath>
#include <optional>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/routing/routing.h>

namespace shunt {
namespace {

constexpr std::string_view kAllowed =
    "KIND[:ARGUMENT][+mask:SHARE][+uneven] with KIND one of uniform, powerlaw:ALPHA, one, "
    "grouped:GROUPS,TOP_GROUPS, trace:FILE, text:FILE";

[[noreturn]] void fail(std::string_view text, std::string_view why) {
  throw Error(Errc::invalid_argument, fmt::format("routing \"{}\": {}; allowed: {}", text, why, kAllowed));
}

/// The whole of `text` as a number, or nothing.
template <class T>
std::optional<T> to_number(std::string_view text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc{} || result.ptr != end) return std::nullopt;
  return value;
}

/// Takes one known modifier off the end of `rest`; false where there is none.
bool take_modifier(std::string_view text, std::string_view& rest, RoutingSpec& spec, bool& has_mask) {
  const auto plus = rest.rfind('+');
  if (plus == std::string_view::npos) return false;
  const std::string_view modifier = rest.substr(plus + 1);
  if (modifier == "uneven") {
    if (spec.uneven) fail(text, "modifier \"uneven\" is given twice");
    spec.uneven = true;
  } else if (modifier.starts_with("mask:")) {
    if (has_mask) fail(text, "modifier \"mask\" is given twice");
    const std::string_view number = modifier.substr(5);
    const auto share = to_number<double>(number);
    if (!share || !(*share >= 0.0 && *share <= 1.0)) {
      fail(text, fmt::format("mask share \"{}\" is not a number in [0, 1]", number));
    }
    spec.mask_share = *share;
    has_mask = true;
  } else {
    return false;
  }
  rest = rest.substr(0, plus);
  return true;
}

void parse_groups(std::string_view text, std::string_view argument, RoutingSpec& spec) {
  const auto comma = argument.find(',');
  const auto groups = to_number<std::int32_t>(argument.substr(0, comma));
  const auto top_groups =
      comma == std::string_view::npos ? std::nullopt : to_number<std::int32_t>(argument.substr(comma + 1));
  if (!groups || !top_groups || *top_groups < 1 || *top_groups > *groups) {
    fail(text, fmt::format("\"{}\" is not GROUPS,TOP_GROUPS with 1 <= TOP_GROUPS <= GROUPS", argument));
  }
  spec.groups = *groups;
  spec.top_groups = *top_groups;
}

/// Shortest decimal that reads back the same; no '+' in an exponent, which would look like a modifier.
std::string number_text(double value) {
  std::string text = fmt::format("{}", value);
  std::erase(text, '+');
  return text;
}

}  // namespace

RoutingSpec parse_routing(std::string_view text) {
  RoutingSpec spec;
  std::string_view rest = text;
  bool has_mask = false;
  while (take_modifier(text, rest, spec, has_mask)) {
  }
  const auto colon = rest.find(':');
  const bool has_argument = colon != std::string_view::npos;
  const std::string_view kind = rest.substr(0, colon);
  const std::string_view argument = has_argument ? rest.substr(colon + 1) : std::string_view{};

  if (kind == "trace" || kind == "text") {
    if (argument.empty()) fail(text, fmt::format("{} needs a file, {}:FILE", kind, kind));
    spec.kind = kind == "trace" ? RoutingKind::trace : RoutingKind::text;
    spec.file = argument;
    return spec;
  }
  if (const auto plus = rest.find('+'); plus != std::string_view::npos) {
    fail(text, fmt::format("unknown modifier \"{}\"", rest.substr(plus + 1)));
  }
  if (kind == "uniform" || kind == "one") {
    if (has_argument) fail(text, fmt::format("{} takes no argument", kind));
    spec.kind = kind == "uniform" ? RoutingKind::uniform : RoutingKind::one;
  } else if (kind == "powerlaw") {
    spec.kind = RoutingKind::power_law;
    const auto alpha = to_number<double>(argument);
    if (!alpha || !std::isfinite(*alpha) || *alpha < 0.0) {
      fail(text, fmt::format("alpha \"{}\" is not a finite number >= 0", argument));
    }
    spec.alpha = *alpha;
  } else if (kind == "grouped") {
    spec.kind = RoutingKind::grouped;
    parse_groups(text, argument, spec);
  } else {
    fail(text, fmt::format("unknown kind \"{}\"", kind));
  }
  return spec;
}

std::string routing_name(const RoutingSpec& spec) {
  std::string name;
  switch (spec.kind) {
    case RoutingKind::uniform:
      name = "uniform";
      break;
    case RoutingKind::power_law:
      name = "powerlaw:" + number_text(spec.alpha);
      break;
    case RoutingKind::one:
      name = "one";
      break;
    case RoutingKind::grouped:
      name = fmt::format("grouped:{},{}", spec.groups, spec.top_groups);
      break;
    case RoutingKind::trace:
      name = "trace:" + spec.file;
      break;
    case RoutingKind::text:
      name = "text:" + spec.file;
      break;
  }
  if (spec.mask_share != 0.0) name += "+mask:" + number_text(spec.mask_share);
  if (spec.uneven) name += "+uneven";
  return name;
}

}  // namespace shunt

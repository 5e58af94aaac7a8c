#include <shunt/scenario/model.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include <shunt/core/error.h>

#include "text.h"

namespace shunt::scenario {

std::string to_text(const Scalar& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* whole = std::get_if<std::int64_t>(&value)) return fmt::format("{}", *whole);
  if (const auto* number = std::get_if<double>(&value)) {
    // As Python writes it, 1.0 and not 1: programs that are given it tell whole numbers from others.
    std::string text = fmt::format("{}", *number);
    if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
    return text;
  }
  return std::get<std::string>(value);
}

std::string to_quoted(const Scalar& value) {
  const auto* text = std::get_if<std::string>(&value);
  return text == nullptr ? to_text(value) : in_quotes(*text);
}

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\r') {
      out += "\\r";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

void fail_at(const Place& place, const std::string& why) {
  throw Error(Errc::io, place.line > 0
                            ? fmt::format("{}:{}:{}: {}", place.file, place.line, place.column, why)
                            : fmt::format("{}: {}", place.file, why));
}

const Argument* TestDefinition::find(const std::string& argument) const noexcept {
  const auto found = std::find_if(cmd_args.begin(), cmd_args.end(),
                                  [&argument](const Argument& one) { return one.name == argument; });
  return found == cmd_args.end() ? nullptr : &*found;
}

std::string TestDefinition::text(const std::string& argument) const {
  const Argument* found = find(argument);
  return found == nullptr || found->values.empty() ? std::string() : to_text(found->values.front());
}

std::int64_t TestDefinition::whole(const std::string& argument, std::int64_t otherwise) const {
  const Argument* found = find(argument);
  if (found == nullptr || found->values.empty()) return otherwise;
  const auto* value = std::get_if<std::int64_t>(&found->values.front());
  return value == nullptr ? otherwise : *value;
}

bool TestDefinition::flag(const std::string& argument) const {
  const Argument* found = find(argument);
  if (found == nullptr || found->values.empty()) return false;
  const auto* value = std::get_if<bool>(&found->values.front());
  return value != nullptr && *value;
}

}  // namespace shunt::scenario

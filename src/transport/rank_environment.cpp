#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <limits>
#include <string_view>

#include <shunt/core/error.h>
#include <shunt/transport/launch.h>

#include "environment.h"

namespace shunt {

std::int32_t parse_number(const char* name, std::string_view text, std::int32_t least, std::int32_t most) {
  std::int32_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < least || value > most) {
    throw Error(Errc::invalid_argument,
                fmt::format("environment: {}='{}'; a whole number from {} to {} is allowed", name, text,
                            least, most));
  }
  return value;
}

namespace {

using Lookup = std::function<const char*(const char*)>;

[[nodiscard]] std::string_view require(const Lookup& get, const char* name) {
  const char* text = get(name);
  if (text == nullptr) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("environment: {} is not set; MASTER_ADDR, MASTER_PORT, WORLD_SIZE, WORLD_LOCAL_SIZE and "
                    "NODE_RANK must be set together, or none of them",
                    name));
  }
  return text;
}

[[nodiscard]] std::int32_t require_number(const Lookup& get, const char* name, std::int32_t least,
                                          std::int32_t most) {
  return parse_number(name, require(get, name), least, most);
}

constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kMostPort = 65535;

/// What needs no other variable: a misspelt value must not pass because the launch is not complete.
void check_each(const Lookup& get) {
  const char* address = get("MASTER_ADDR");
  if (address != nullptr && *address == '\0') {
    throw Error(Errc::invalid_argument, "environment: MASTER_ADDR=''; a host name or an address is allowed");
  }
  const auto check = [&](const char* name, std::int32_t least, std::int32_t most) {
    if (const char* text = get(name); text != nullptr)
      static_cast<void>(parse_number(name, text, least, most));
  };
  check("MASTER_PORT", 1, kMostPort);
  check("WORLD_SIZE", 1, kMost);
  check("WORLD_LOCAL_SIZE", 1, kMost);
  check("NODE_RANK", 0, kMost);
}

}  // namespace

RankEnvironment parse_rank_environment(const Lookup& get) {
  check_each(get);
  RankEnvironment result;
  if (get("MASTER_ADDR") == nullptr && get("WORLD_LOCAL_SIZE") == nullptr) return result;
  result.present = true;
  result.master_addr = require(get, "MASTER_ADDR");
  result.master_port = require_number(get, "MASTER_PORT", 1, kMostPort);
  result.world_size = require_number(get, "WORLD_SIZE", 1, kMost);
  result.local_size = require_number(get, "WORLD_LOCAL_SIZE", 1, kMost);
  if (result.world_size % result.local_size != 0) {
    throw Error(Errc::invalid_argument,
                fmt::format("environment: WORLD_SIZE='{}' with WORLD_LOCAL_SIZE='{}'; a multiple of "
                            "WORLD_LOCAL_SIZE is allowed",
                            result.world_size, result.local_size));
  }
  result.node_rank = require_number(get, "NODE_RANK", 0, result.nodes() - 1);
  return result;
}

}  // namespace shunt

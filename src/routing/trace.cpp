#include <shunt/routing/trace.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <optional>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <shunt/core/error.h>
#include <shunt/core/record.h>

#include "check.h"
#include "json_position.h"
#include "read_file.h"

namespace shunt {
namespace {

using Json = nlohmann::json;

constexpr std::int64_t kFormat = 1;
constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

/// One line of the file, with what error messages need.
class Line {
 public:
  Line(const std::string& path, std::int64_t number, std::string_view text,
       std::initializer_list<std::string_view> keys)
      : path_(path), number_(number), text_(text) {
    try {
      json_ = Json::parse(text);
    } catch (const Json::parse_error& error) {
      // nlohmann counts bytes from 1 and reports the last one read.
      fail(std::max<std::int64_t>(1, static_cast<std::int64_t>(error.byte)),
           fmt::format("not valid JSON; expected one object with the keys {}", fmt::join(keys, ", ")));
    } catch (const Json::out_of_range&) {
      fail(1, "holds a number too large for a double");
    }
    if (!json_.is_object()) {
      fail(1, fmt::format("expected an object with the keys {}", fmt::join(keys, ", ")));
    }
    for (const auto& [key, value] : json_.items()) {
      bool known = false;
      for (const std::string_view allowed : keys) known = known || allowed == key;
      if (!known) {
        fail(detail::json_key_column(text_, key),
             fmt::format("unknown key \"{}\"; allowed are {}", key, fmt::join(keys, ", ")));
      }
    }
    for (const std::string_view key : keys) {
      if (!json_.contains(key)) fail(1, fmt::format("key \"{}\" is missing", key));
    }
  }

  [[noreturn]] void fail(std::int64_t column, const std::string& why) const {
    throw Error(Errc::io, fmt::format("{}:{}:{}: {}", path_, number_, column, why));
  }
  [[noreturn]] void fail_at(std::string_view key, const std::vector<std::int64_t>& indices,
                            const std::string& why) const {
    fail(detail::json_column(text_, key, indices), why);
  }

  std::string string(std::string_view key) const {
    const Json& value = at(key);
    if (!value.is_string()) fail_at(key, {}, fmt::format("\"{}\": expected a string", key));
    return value.get<std::string>();
  }

  std::int64_t integer(std::string_view key, std::int64_t low, std::int64_t high) const {
    const Json& value = at(key);
    const auto number = to_integer(value);
    if (!number || *number < low || *number > high) {
      fail_at(key, {}, fmt::format("\"{}\": expected an integer in [{}, {}]", key, low, high));
    }
    return *number;
  }

  /// Nothing where `value` is not an integer that fits.
  static std::optional<std::int64_t> to_integer(const Json& value) {
    if (!value.is_number_integer()) return std::nullopt;
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > std::uint64_t{1} << 62)
      return std::nullopt;
    return value.get<std::int64_t>();
  }

  const Json& at(std::string_view key) const { return *json_.find(key); }

 private:
  const std::string& path_;
  std::int64_t number_;
  std::string_view text_;
  Json json_;
};

/// Appends the [T, K] numbers under `key` to `out`.
template <class T, class Convert>
std::int64_t read_table(const Line& line, std::string_view key, std::int32_t top_k, std::string_view what,
                        Convert&& convert, std::vector<T>& out) {
  const Json& rows = line.at(key);
  if (!rows.is_array())
    line.fail_at(key, {}, fmt::format("\"{}\": expected an array with an array per token", key));
  std::int64_t token = 0;
  for (const Json& row : rows) {
    if (!row.is_array() || row.size() != static_cast<std::size_t>(top_k)) {
      line.fail_at(key, {token},
                   fmt::format("\"{}\", token {}: expected an array of {} {}", key, token, top_k, what));
    }
    std::int64_t k = 0;
    for (const Json& value : row) {
      const auto number = convert(value);
      if (!number) {
        line.fail_at(key, {token, k},
                     fmt::format("\"{}\", token {}, k {}: expected one of {}", key, token, k, what));
      }
      out.push_back(*number);
      ++k;
    }
    ++token;
  }
  return token;
}

Routing read_routing(const Line& line, const Trace& trace) {
  Routing routing;
  routing.num_experts = trace.num_experts;
  routing.top_k = trace.top_k;
  const auto to_id = [](const Json& value) -> std::optional<std::int32_t> {
    const auto id = Line::to_integer(value);
    if (!id || *id < -kMaxInt32 || *id > kMaxInt32) return std::nullopt;
    return static_cast<std::int32_t>(*id);
  };
  const auto to_weight = [](const Json& value) -> std::optional<float> {
    if (!value.is_number()) return std::nullopt;
    return static_cast<float>(value.get<double>());
  };
  routing.num_tokens = read_table(line, "ids", trace.top_k, "expert ids", to_id, routing.ids);
  const std::int64_t weight_tokens =
      read_table(line, "weights", trace.top_k, "weights", to_weight, routing.weights);
  if (weight_tokens != routing.num_tokens) {
    line.fail_at("weights", {},
                 fmt::format("\"weights\" has {} tokens; \"ids\" has {}", weight_tokens, routing.num_tokens));
  }
  auto problem = detail::find_id_problem(routing);
  if (!problem) problem = detail::find_weight_problem(routing);
  if (problem) {
    const std::string_view key = problem->field == detail::RoutingProblem::Field::ids ? "ids" : "weights";
    line.fail_at(key, {problem->token, problem->k}, detail::describe(*problem, fmt::format("\"{}\"", key)));
  }
  return routing;
}

/// Shortest decimal that reads back as `weight`, also for a reader that goes through double.
void append_weight(fmt::memory_buffer& out, float weight) {
  const std::string text = fmt::format("{}", weight);
  const bool same = static_cast<float>(std::strtod(text.c_str(), nullptr)) == weight;
  fmt::format_to(std::back_inserter(out), "{}", same ? text : fmt::format("{}", static_cast<double>(weight)));
}

}  // namespace

Trace read_trace(const std::string& path) {
  const std::string text = detail::read_file(path);
  std::string_view rest = text;
  std::int64_t number = 0;
  const auto next_line = [&](std::string_view expected) {
    ++number;
    if (rest.empty()) {
      throw Error(Errc::io, fmt::format("{}:{}:1: the file ends; expected {}", path, number, expected));
    }
    const auto end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
    return line;
  };

  Trace trace;
  const std::string_view first = next_line("the header of a trace");
  const Line header(path, number, first,
                    {"record", "format", "experts", "topk", "groups", "steps", "source"});
  if (header.string("record") != "trace") header.fail_at("record", {}, "\"record\": expected \"trace\"");
  header.integer("format", kFormat, kFormat);
  trace.num_experts = static_cast<std::int32_t>(header.integer("experts", 1, kMaxInt32));
  trace.top_k = static_cast<std::int32_t>(header.integer("topk", 1, trace.num_experts));
  const std::int64_t groups = header.integer("groups", 1, kMaxInt32);
  const std::int64_t steps = header.integer("steps", 1, kMaxInt32);
  trace.source = header.string("source");

  for (std::int64_t step = 0; step < steps; ++step) {
    auto& routings = trace.steps.emplace_back();
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::string expected =
          fmt::format("step {}, group {} of {} steps with {} groups", step, group, steps, groups);
      const std::string_view body = next_line(expected);
      const Line line(path, number, body, {"step", "group", "ids", "weights"});
      if (line.integer("step", 0, kMaxInt32) != step) line.fail_at("step", {}, "expected " + expected);
      if (line.integer("group", 0, kMaxInt32) != group) line.fail_at("group", {}, "expected " + expected);
      routings.push_back(read_routing(line, trace));
    }
  }
  if (!rest.empty()) {
    throw Error(Errc::io, fmt::format("{}:{}:1: text after the last of {} steps with {} groups", path,
                                      number + 1, steps, groups));
  }
  return trace;
}

void write_trace(const std::string& path, const Trace& trace) {
  const auto fail = [&path](const std::string& why) {
    throw Error(Errc::invalid_argument, fmt::format("trace for {}: {}", path, why));
  };
  if (trace.steps.empty() || trace.steps.front().empty()) fail("at least one step with one group is needed");
  const std::size_t groups = trace.steps.front().size();

  fmt::memory_buffer out;
  const auto append = [&out](std::string_view part) { out.append(part.data(), part.data() + part.size()); };
  std::string source;
  try {
    source = Json(trace.source).dump();
  } catch (const Json::exception&) {
    fail("the source is not valid UTF-8");
  }
  fmt::format_to(
      std::back_inserter(out),
      R"({{"record":"trace","format":{},"experts":{},"topk":{},"groups":{},"steps":{},"source":{}}})"
      "\n",
      kFormat, trace.num_experts, trace.top_k, groups, trace.steps.size(), source);
  for (std::size_t step = 0; step < trace.steps.size(); ++step) {
    if (trace.steps[step].size() != groups) {
      fail(fmt::format("step {} has {} groups; step 0 has {}", step, trace.steps[step].size(), groups));
    }
    for (std::size_t group = 0; group < groups; ++group) {
      const Routing& routing = trace.steps[step][group];
      const std::string where = fmt::format("step {}, group {}", step, group);
      check_routing(routing, fmt::format("trace for {}: {}", path, where));
      if (routing.num_experts != trace.num_experts || routing.top_k != trace.top_k) {
        fail(fmt::format("{}: {} experts and top-k {}; the trace has {} and {}", where, routing.num_experts,
                         routing.top_k, trace.num_experts, trace.top_k));
      }
      fmt::format_to(std::back_inserter(out), R"({{"step":{},"group":{},"ids":[)", step, group);
      const auto k = static_cast<std::size_t>(routing.top_k);
      for (std::size_t i = 0; i < routing.ids.size(); ++i) {
        append(i % k != 0 ? "," : i != 0 ? "],[" : "[");
        fmt::format_to(std::back_inserter(out), "{}", routing.ids[i]);
      }
      append(routing.ids.empty() ? R"(],"weights":[)" : R"(]],"weights":[)");
      for (std::size_t i = 0; i < routing.weights.size(); ++i) {
        append(i % k != 0 ? "," : i != 0 ? "],[" : "[");
        append_weight(out, routing.weights[i]);
      }
      append(routing.weights.empty() ? "]}\n" : "]]}\n");
    }
  }
  write_new_file(path, fmt::to_string(out));
}

}  // namespace shunt

#include "merge.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <map>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>
#include <shunt/core/nearest.h>
#include <shunt/scenario/nodes.h>

#include "templates.h"

namespace shunt::scenario {
namespace {

/// A key with its value, and the file of both.
struct Entry {
  std::string name;
  const std::string* path = nullptr;
  const toml::node* node = nullptr;
  Place place;
};

std::vector<std::string> split(const std::string& text, char mark) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(mark, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// The keys of a table in the order of the file.
std::vector<Entry> entries_of(const std::string& path, const toml::table& table) {
  std::vector<Entry> entries;
  for (const auto& [key, value] : table)
    entries.push_back({std::string(key.str()), &path, &value, place_of(path, key)});
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.place.line, a.place.column) < std::pair(b.place.line, b.place.column);
  });
  return entries;
}

/// The tables `name` of all layers as one: the order of the last layer, values of the first that has one.
std::vector<Entry> merged_table(const std::vector<Layer>& layers, const std::string& name) {
  std::vector<Entry> merged;
  for (std::size_t i = layers.size(); i-- > 0;) {
    const toml::node* node = layers[i].table->get(name);
    if (node == nullptr) continue;
    if (node->as_table() == nullptr)
      fail_at(place_of(*layers[i].path, *node), fmt::format("{}: expected a table", name));
    for (Entry& entry : entries_of(*layers[i].path, *node->as_table())) {
      const auto same = std::find_if(merged.begin(), merged.end(),
                                     [&entry](const Entry& one) { return one.name == entry.name; });
      if (same == merged.end())
        merged.push_back(std::move(entry));
      else
        *same = std::move(entry);
    }
  }
  return merged;
}

const Layer* layer_with(const std::vector<Layer>& layers, const std::string& key) {
  for (const Layer& layer : layers)
    if (layer.table->get(key) != nullptr) return &layer;
  return nullptr;
}

std::string text_of(const std::vector<Layer>& layers, const std::string& key, const Place& place,
                    bool required) {
  const Layer* layer = layer_with(layers, key);
  if (layer == nullptr) {
    if (required) fail_at(place, fmt::format("key \"{}\" is missing", key));
    return {};
  }
  const auto value = layer->table->get(key)->value_exact<std::string>();
  if (!value || value->empty())
    fail_at(place_of(*layer->path, *layer->table->get(key)),
            fmt::format("{}: expected a text in quotes", key));
  return *value;
}

/// Texts go into scripts line by line, so none may end its line.
void check_line(const Entry& entry, const std::string& text) {
  for (const char c : text)
    if (static_cast<unsigned char>(c) < 0x20 && c != '\t')
      fail_at(entry.place,
              fmt::format("{}: a text may have no line break or other control character", entry.name));
}

/// A value of an unknown kind, as it stands.
Scalar any_scalar(const Entry& entry, const toml::node& node) {
  if (const auto flag = node.value_exact<bool>()) return *flag;
  if (const auto whole = node.value_exact<std::int64_t>()) return *whole;
  if (const auto number = node.value_exact<double>()) return *number;
  if (const auto text = node.value_exact<std::string>()) {
    check_line(entry, *text);
    return *text;
  }
  fail_at(entry.place,
          fmt::format("{}: expected a text, a number, true or false, or a list of those", entry.name));
}

[[noreturn]] void fail_value(const Entry& entry, const toml::node& node, const std::string& expected) {
  const Place place = place_of(*entry.path, node);
  fail_at(place, fmt::format("{}: expected {}", entry.name, expected));
}

std::optional<std::int64_t> whole_of(const toml::node& node) {
  if (const auto value = node.value_exact<std::int64_t>()) return value;
  // CloudAI takes numbers in quotes too.
  const auto text = node.value_exact<std::string>();
  if (!text) return std::nullopt;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size() || text->empty()) return std::nullopt;
  return value;
}

Scalar field_scalar(const Entry& entry, const Field& field, const toml::node& node) {
  switch (field.kind) {
    case FieldKind::flag: {
      const auto value = node.value_exact<bool>();
      if (!value) fail_value(entry, node, "true or false");
      return *value;
    }
    case FieldKind::whole: {
      const auto value = whole_of(node);
      if (!value || static_cast<double>(*value) < field.low || static_cast<double>(*value) > field.high)
        fail_value(entry, node,
                   fmt::format("a whole number in [{:.0f}, {:.0f}], or a list of them to sweep", field.low,
                               field.high));
      return *value;
    }
    case FieldKind::number: {
      const auto value = node.is_number() ? node.value<double>() : std::nullopt;
      if (!value || !std::isfinite(*value) || *value < field.low || *value > field.high)
        fail_value(entry, node,
                   fmt::format("a number in [{}, {}], or a list of them to sweep", field.low, field.high));
      return *value;
    }
    case FieldKind::text: {
      const auto value = node.value_exact<std::string>();
      if (!value) fail_value(entry, node, "a text in quotes, or a list of them to sweep");
      check_line(entry, *value);
      return *value;
    }
    case FieldKind::choice:
    case FieldKind::texts:
      break;
  }
  const std::vector<std::string> choices = split(field.choices, '|');
  const auto value = node.value_exact<std::string>();
  if (!value)
    fail_value(entry, node,
               field.kind == FieldKind::texts
                   ? "a list of texts in quotes"
                   : fmt::format("one of {}, in quotes", fmt::join(choices, ", ")));
  check_line(entry, *value);
  if (*field.choices != '\0' && std::find(choices.begin(), choices.end(), *value) == choices.end())
    fail_at(place_of(*entry.path, node),
            fmt::format("{}: \"{}\" is not one of {}; did you mean \"{}\"?", entry.name, *value,
                        fmt::join(choices, ", "), nearest_name(*value, choices)));
  return *value;
}

/// Most values of one key.
constexpr std::size_t kMaxValues = 4096;

Argument read_argument(const Entry& entry, const Field* field, bool keep_list) {
  Argument argument{.name = entry.name, .values = {}, .list = false, .place = entry.place};
  const auto scalar = [&](const toml::node& node) {
    return field == nullptr ? any_scalar(entry, node) : field_scalar(entry, *field, node);
  };
  const toml::array* array = entry.node->as_array();
  const bool texts = field != nullptr && field->kind == FieldKind::texts;
  if (array == nullptr) {
    if (texts) fail_value(entry, *entry.node, "a list of texts in quotes");
    argument.values.push_back(scalar(*entry.node));
    return argument;
  }
  argument.list = texts || keep_list;
  if (keep_list && field != nullptr && !texts)
    fail_at(entry.place,
            fmt::format("{}: takes one value, so its list cannot be left out of the sweep", entry.name));
  if (array->empty() || array->size() > kMaxValues)
    fail_at(entry.place, fmt::format("{}: a list needs 1 to {} values", entry.name, kMaxValues));
  for (const toml::node& node : *array) argument.values.push_back(scalar(node));
  return argument;
}

void read_cmd_args(const std::vector<Layer>& layers, const std::vector<std::string>& excluded,
                   const Place& place, TestDefinition& test) {
  std::vector<Entry> entries = merged_table(layers, "cmd_args");
  std::vector<Entry> extras;
  const auto extra =
      std::find_if(entries.begin(), entries.end(), [](const Entry& one) { return one.name == "extra"; });
  if (extra != entries.end()) {
    if (extra->node->as_table() == nullptr) fail_at(extra->place, "cmd_args.extra: expected a table");
    extras = entries_of(*extra->path, *extra->node->as_table());
    entries.erase(extra);
  }
  std::vector<std::string> keys;
  for (const Entry& entry : entries) keys.push_back(entry.name);
  const Template* found = nullptr;
  try {
    found = &find_template(test.template_name, keys);
  } catch (const Error& error) {
    fail_at(place, error.what());
  }
  test.workload = found->workload;
  std::vector<std::string> allowed;
  for (const Field& field : found->fields) allowed.emplace_back(field.name);
  for (const Entry& entry : entries)
    if (std::find(allowed.begin(), allowed.end(), entry.name) == allowed.end())
      fail_at(entry.place,
              fmt::format("unknown key \"cmd_args.{}\" of {}; did you mean \"{}\"? Allowed are {}; "
                          "others may stand in [cmd_args.extra]",
                          entry.name, test.template_name, nearest_name(entry.name, allowed),
                          fmt::join(allowed, ", ")));
  const auto kept = [&excluded](const std::string& name) {
    return std::find(excluded.begin(), excluded.end(), "cmd_args." + name) != excluded.end();
  };
  for (const Field& field : found->fields) {
    const auto entry = std::find_if(entries.begin(), entries.end(),
                                    [&field](const Entry& one) { return one.name == field.name; });
    if (entry != entries.end())
      test.cmd_args.push_back(read_argument(*entry, &field, kept(entry->name)));
    else if (field.standard != nullptr)
      test.cmd_args.push_back(default_argument(field));
  }
  for (const Entry& entry : extras) {
    if (looks_secret(entry.name))
      fail_at(entry.place, fmt::format("cmd_args.extra.{} looks like a secret; set it in the environment of "
                                       "shunt, which passes it on and writes it nowhere",
                                       entry.name));
    if (std::find(allowed.begin(), allowed.end(), entry.name) != allowed.end())
      fail_at(entry.place,
              fmt::format("cmd_args.extra.{} is a key of cmd_args itself; write it there", entry.name));
    test.cmd_args.push_back(read_argument(entry, nullptr, kept(entry.name)));
  }
  const std::string image = test.text("docker_image_url");
  if (has_credentials(image))
    fail_at(test.find("docker_image_url")->place,
            "docker_image_url holds a password; put it into ~/.config/enroot/.credentials instead");
}

void check_variable(const Entry& entry) {
  const std::string& name = entry.name;
  bool good = !name.empty() && std::isdigit(static_cast<unsigned char>(name[0])) == 0;
  for (const char c : name) good = good && (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_');
  if (!good) fail_at(entry.place, fmt::format("\"{}\" is not a name of an environment variable", name));
  if (looks_secret(name))
    fail_at(entry.place,
            fmt::format("{} looks like a secret; set it in the environment of shunt, which passes "
                        "it on and writes it nowhere",
                        name));
}

void read_expect(const Layer& layer, TestDefinition& test) {
  const toml::node& node = *layer.table->get("expect");
  if (node.as_table() == nullptr) fail_at(place_of(*layer.path, node), "expect: expected a table");
  for (const Entry& entry : entries_of(*layer.path, *node.as_table())) {
    if (entry.name == "failure") {
      const auto value = entry.node->value_exact<bool>();
      if (!value) fail_at(entry.place, "expect.failure: expected true or false");
      test.expect_failure = *value;
      continue;
    }
    std::vector<const toml::table*> tables;
    if (const toml::table* one = entry.node->as_table()) tables.push_back(one);
    if (const toml::array* several = entry.node->as_array())
      for (const toml::node& item : *several)
        if (item.as_table() != nullptr) tables.push_back(item.as_table());
    if (tables.empty())
      fail_at(
          entry.place,
          fmt::format("expect.{}: expected a table such as {{ min = 1.5 }}, or a list of them", entry.name));
    for (const toml::table* table : tables) {
      const detail::TomlReader reader(*layer.path, *table,
                                      {"min", "max", "reference", "tolerance_percent", "where"},
                                      fmt::format("expect.{}.", entry.name));
      constexpr double kHuge = 1e300;
      Expectation expectation;
      expectation.metric = entry.name;
      expectation.place = entry.place;
      if (reader.has("min")) expectation.min = reader.number("min", -kHuge, kHuge);
      if (reader.has("max")) expectation.max = reader.number("max", -kHuge, kHuge);
      if (reader.has("reference")) expectation.reference = reader.number("reference", -kHuge, kHuge);
      expectation.tolerance_percent = reader.number_or("tolerance_percent", 0, 1e6, 0);
      if (reader.has("reference") != reader.has("tolerance_percent"))
        fail_at(entry.place,
                fmt::format("expect.{}: reference and tolerance_percent go together", entry.name));
      if (!expectation.min && !expectation.max && !expectation.reference)
        fail_at(entry.place,
                fmt::format("expect.{}: needs min, max, or reference with tolerance_percent", entry.name));
      if (expectation.min && expectation.max && *expectation.min > *expectation.max)
        fail_at(entry.place, fmt::format("expect.{}: min is above max, so nothing could pass", entry.name));
      if (reader.has("where")) {
        const toml::table* where = table->get("where")->as_table();
        if (where == nullptr) reader.fail("where", "expected a table of keys and values");
        for (const Entry& condition : entries_of(*layer.path, *where))
          expectation.where.emplace_back(condition.name, any_scalar(condition, *condition.node));
      }
      test.expect.push_back(std::move(expectation));
    }
  }
}

void read_nsys(const Layer& layer, TestDefinition& test) {
  const toml::node& node = *layer.table->get("nsys");
  if (node.as_table() == nullptr) fail_at(place_of(*layer.path, node), "nsys: expected a table");
  const std::vector<std::pair<std::string, std::string>> options = {
      {"sample", "-s"},
      {"output", "-o"},
      {"trace", "-t"},
      {"capture_range", "--capture-range"},
      {"capture_range_end", "--capture-range-end"},
      {"cuda_graph_trace", "--cuda-graph-trace"},
      {"gpu_metrics_devices", "--gpu-metrics-devices"}};
  std::vector<std::string> allowed = {"enable", "nsys_binary", "task", "force_overwrite", "extra_args"};
  for (const auto& [key, option] : options) allowed.push_back(key);
  const detail::TomlReader reader(*layer.path, *node.as_table(), allowed, "nsys.");
  const std::string binary = reader.text_or("nsys_binary", "nsys");
  const std::string task = reader.text_or("task", "profile");
  std::vector<std::string> words = {binary, task};
  for (const auto& [key, option] : options) {
    // Where CloudAI has it: before the options of the range.
    if (key == "capture_range" && reader.has("force_overwrite"))
      words.push_back(fmt::format("--force-overwrite={}", reader.flag_or("force_overwrite", false)));
    if (reader.has(key)) words.push_back(option + (option.size() > 2 ? "=" : " ") + reader.text(key));
  }
  for (std::string& word : reader.texts_or_none("extra_args")) words.push_back(std::move(word));
  if (reader.flag_or("enable", true)) test.nsys = std::move(words);
}

}  // namespace

Place place_of(const std::string& path, const toml::node& node) {
  const toml::source_position where = node.source().begin;
  return {path, where.line, where.column};
}

Place place_of(const std::string& path, const toml::key& key) {
  const toml::source_position where = key.source().begin;
  return {path, where.line, where.column};
}

const std::vector<std::string>& test_keys() {
  static const std::vector<std::string> keys = {"name",
                                                "description",
                                                "test_template_name",
                                                "cmd_args",
                                                "dse_excluded_args",
                                                "extra_env_vars",
                                                "extra_cmd_args",
                                                "extra_container_mounts",
                                                "git_repos",
                                                "nsys",
                                                "predictor",
                                                "training_report",
                                                "agent",
                                                "agent_steps",
                                                "agent_metrics",
                                                "agent_reward_function",
                                                "agent_config",
                                                "env_params",
                                                "expect"};
  return keys;
}

TestDefinition merge_test(const std::vector<Layer>& layers, const Place& place) {
  TestDefinition test;
  for (const char* key : {"git_repos", "predictor", "training_report", "agent_config", "env_params"})
    if (const Layer* layer = layer_with(layers, key))
      fail_at(place_of(*layer->path, *layer->table->get(key)),
              fmt::format("{} is CloudAI's and has no counterpart here; remove it", key));
  if (const std::string agent = text_of(layers, "agent", place, false);
      !agent.empty() && agent != "grid_search")
    fail_at(place,
            fmt::format("agent \"{}\": sweeps try every combination, which is \"grid_search\"", agent));
  test.name = text_of(layers, "name", place, true);
  test.description = text_of(layers, "description", place, false);
  test.template_name = text_of(layers, "test_template_name", place, true);
  std::vector<std::string> excluded;
  if (const Layer* layer = layer_with(layers, "dse_excluded_args"))
    excluded = detail::TomlReader(*layer->path, *layer->table,
                                  [&] {
                                    std::vector<std::string> keys;
                                    for (const auto& [key, value] : *layer->table)
                                      keys.emplace_back(key.str());
                                    return keys;
                                  }())
                   .texts_or_none("dse_excluded_args");
  const Layer* named = layer_with(layers, "test_template_name");
  read_cmd_args(layers, excluded, place_of(*named->path, *named->table->get("test_template_name")), test);
  for (const Entry& entry : merged_table(layers, "extra_env_vars")) {
    check_variable(entry);
    Argument variable = read_argument(entry, nullptr, false);
    for (Scalar& value : variable.values) value = to_text(value);
    test.env.push_back(std::move(variable));
  }
  for (const Entry& entry : merged_table(layers, "extra_cmd_args")) {
    if (looks_secret(entry.name))
      fail_at(entry.place,
              fmt::format("extra_cmd_args.{} looks like a secret; pass it by the environment", entry.name));
    test.extra_cmd_args.emplace_back(entry.name, to_text(any_scalar(entry, *entry.node)));
  }
  if (const Layer* layer = layer_with(layers, "extra_container_mounts")) {
    const toml::node& node = *layer->table->get("extra_container_mounts");
    const Entry entry{"extra_container_mounts", layer->path, &node, place_of(*layer->path, node)};
    if (node.as_array() == nullptr) fail_at(entry.place, "extra_container_mounts: expected a list of texts");
    for (const toml::node& mount : *node.as_array())
      test.extra_container_mounts.push_back(to_text(any_scalar(entry, mount)));
  }
  if (const Layer* layer = layer_with(layers, "nsys")) read_nsys(*layer, test);
  if (const Layer* layer = layer_with(layers, "expect")) read_expect(*layer, test);
  check_together(test, place);
  return test;
}

}  // namespace shunt::scenario

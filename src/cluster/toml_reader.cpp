#include "toml_reader.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

#include <shunt/core/nearest.h>

namespace shunt::detail {
namespace {

[[noreturn]] void fail_at(const std::string& path, const toml::source_position& where,
                          const std::string& why) {
  throw Error(Errc::io, fmt::format("{}:{}:{}: {}", path, where.line, where.column, why));
}

toml::source_position begin_of(const toml::node& node) {
  const toml::source_position where = node.source().begin;
  return where ? where : toml::source_position{1, 1};
}

}  // namespace

std::string read_text_file(const std::string& path) {
  std::error_code code;
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path, code))
    throw Error(Errc::io, fmt::format("{}: cannot read this file", path));
  return {std::istreambuf_iterator<char>(file), {}};
}

toml::table parse_toml(const std::string& path) {
  const std::string content = read_text_file(path);
  try {
    return toml::parse(content, path);
  } catch (const toml::parse_error& error) {
    fail_at(path, error.source().begin, fmt::format("not valid TOML: {}", error.description()));
  }
}

TomlReader::TomlReader(const std::string& path, const toml::table& table, std::vector<std::string> allowed,
                       std::string prefix)
    : path_(path), table_(table), prefix_(std::move(prefix)) {
  for (const auto& [key, value] : table) {
    const std::string name(key.str());
    if (std::find(allowed.begin(), allowed.end(), name) == allowed.end()) {
      fail_at(path, key.source().begin,
              fmt::format("unknown key \"{}{}\"; {}", prefix_, name, allowed_names(name, allowed)));
    }
  }
}

bool TomlReader::has(const std::string& key) const {
  return table_.get(key) != nullptr;
}

void TomlReader::fail(const std::string& key, const std::string& why) const {
  const toml::node* node = table_.get(key);
  fail_at(path_, begin_of(node == nullptr ? table_ : *node), fmt::format("{}{}: {}", prefix_, key, why));
}

const toml::node& TomlReader::get(const std::string& key) const {
  const toml::node* node = table_.get(key);
  if (node == nullptr) fail_at(path_, begin_of(table_), fmt::format("key \"{}{}\" is missing", prefix_, key));
  return *node;
}

std::string TomlReader::text(const std::string& key) const {
  const auto value = get(key).value_exact<std::string>();
  if (!value || value->empty()) fail(key, "expected a text in quotes");
  return *value;
}

std::string TomlReader::text_or(const std::string& key, const std::string& otherwise) const {
  return has(key) ? text(key) : otherwise;
}

std::int64_t TomlReader::integer(const std::string& key, std::int64_t low, std::int64_t high) const {
  const auto value = get(key).value_exact<std::int64_t>();
  if (!value || *value < low || *value > high)
    fail(key, fmt::format("expected an integer in [{}, {}]", low, high));
  return *value;
}

std::int64_t TomlReader::integer_or(const std::string& key, std::int64_t low, std::int64_t high,
                                    std::int64_t otherwise) const {
  return has(key) ? integer(key, low, high) : otherwise;
}

double TomlReader::number(const std::string& key, double low, double high) const {
  const toml::node& node = get(key);
  const auto value = node.is_number() ? node.value<double>() : std::nullopt;
  if (!value || !std::isfinite(*value) || *value < low || *value > high)
    fail(key, fmt::format("expected a number in [{}, {}]", low, high));
  return *value;
}

double TomlReader::number_or(const std::string& key, double low, double high, double otherwise) const {
  return has(key) ? number(key, low, high) : otherwise;
}

bool TomlReader::flag_or(const std::string& key, bool otherwise) const {
  if (!has(key)) return otherwise;
  const auto value = get(key).value_exact<bool>();
  if (!value) fail(key, "expected true or false");
  return *value;
}

std::size_t TomlReader::choice(const std::string& key, const std::vector<std::string>& names) const {
  const auto value = get(key).value_exact<std::string>();
  const auto found = std::find(names.begin(), names.end(), value.value_or(""));
  if (!value || found == names.end()) {
    fail(key, value ? fmt::format("\"{}\" is not known; {}", *value, allowed_names(*value, names))
                    : fmt::format("expected one of {}, in quotes", fmt::join(names, ", ")));
  }
  return static_cast<std::size_t>(found - names.begin());
}

std::size_t TomlReader::choice_or(const std::string& key, const std::vector<std::string>& names,
                                  std::size_t otherwise) const {
  return has(key) ? choice(key, names) : otherwise;
}

std::vector<std::int64_t> TomlReader::integers(const std::string& key, std::int64_t low,
                                               std::int64_t high) const {
  const toml::array* array = get(key).as_array();
  if (array == nullptr) fail(key, fmt::format("expected a list of integers in [{}, {}]", low, high));
  std::vector<std::int64_t> values;
  for (const toml::node& node : *array) {
    const auto value = node.value_exact<std::int64_t>();
    if (!value || *value < low || *value > high) {
      fail_at(path_, begin_of(node),
              fmt::format("{}{}: expected integers in [{}, {}]", prefix_, key, low, high));
    }
    values.push_back(*value);
  }
  return values;
}

std::vector<std::string> TomlReader::texts_or_none(const std::string& key) const {
  std::vector<std::string> texts;
  if (!has(key)) return texts;
  const toml::array* array = get(key).as_array();
  if (array == nullptr) fail(key, "expected a list of texts in quotes");
  for (const toml::node& node : *array) {
    const auto text = node.value_exact<std::string>();
    if (!text || text->empty()) fail(key, "expected a list of texts in quotes");
    texts.push_back(*text);
  }
  return texts;
}

TomlReader TomlReader::table(const std::string& key, std::vector<std::string> allowed) const {
  const toml::table* table = get(key).as_table();
  if (table == nullptr) fail(key, "expected a table");
  return {path_, *table, std::move(allowed), fmt::format("{}{}.", prefix_, key)};
}

void expect_format(const TomlReader& reader, std::int64_t format) {
  (void)reader.integer("format", format, format);
}

}  // namespace shunt::detail

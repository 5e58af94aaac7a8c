#include <shunt/cluster/model_shape.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <string_view>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <toml++/toml.h>

#include <shunt/core/error.h>

#include "nearest.h"

namespace shunt {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kFormat = 1;

const std::vector<std::string>& allowed_keys() {
  static const std::vector<std::string> keys = {"format",  "description", "source",
                                                "experts", "topk",        "hidden"};
  return keys;
}

[[noreturn]] void fail(const std::string& path, const toml::source_position& where, const std::string& why) {
  throw Error(Errc::io, fmt::format("{}:{}:{}: {}", path, where.line, where.column, why));
}

class PresetReader {
 public:
  PresetReader(const std::string& path, const toml::table& table) : path_(path), table_(table) {
    for (const auto& [key, value] : table) {
      const std::string name(key.str());
      const auto& keys = allowed_keys();
      if (std::find(keys.begin(), keys.end(), name) == keys.end()) {
        fail(path, key.source().begin,
             fmt::format("unknown key \"{}\"; did you mean \"{}\"? Allowed are {}", name,
                         detail::nearest(name, keys), fmt::join(keys, ", ")));
      }
    }
  }

  std::string text(const std::string& key) const {
    const toml::node& node = get(key);
    const auto value = node.value_exact<std::string>();
    if (!value || value->empty())
      fail(path_, node.source().begin, fmt::format("{}: expected a text in quotes", key));
    return *value;
  }

  std::int64_t integer(const std::string& key, std::int64_t low, std::int64_t high) const {
    const toml::node& node = get(key);
    const auto value = node.value_exact<std::int64_t>();
    if (!value || *value < low || *value > high) {
      fail(path_, node.source().begin, fmt::format("{}: expected an integer in [{}, {}]", key, low, high));
    }
    return *value;
  }

 private:
  const toml::node& get(const std::string& key) const {
    const toml::node* node = table_.get(key);
    if (node == nullptr) fail(path_, {1, 1}, fmt::format("key \"{}\" is missing", key));
    return *node;
  }

  const std::string& path_;
  const toml::table& table_;
};

std::string read_file(const std::string& path) {
  std::error_code code;
  std::ifstream file(path, std::ios::binary);
  if (!file || fs::is_directory(path, code))
    throw Error(Errc::io, fmt::format("{}: cannot read this file", path));
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

ModelShape read_model_shape(const std::string& path) {
  const std::string content = read_file(path);
  toml::table table;
  try {
    table = toml::parse(content, path);
  } catch (const toml::parse_error& error) {
    fail(path, error.source().begin, fmt::format("not valid TOML: {}", error.description()));
  }
  const PresetReader reader(path, table);
  reader.integer("format", kFormat, kFormat);
  constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();
  ModelShape shape;
  shape.name = fs::path(path).stem().string();
  shape.description = reader.text("description");
  shape.source = reader.text("source");
  shape.num_experts = static_cast<std::int32_t>(reader.integer("experts", 1, kMaxInt32));
  shape.top_k = static_cast<std::int32_t>(reader.integer("topk", 1, shape.num_experts));
  shape.hidden = reader.integer("hidden", 1, std::int64_t{1} << 40);
  return shape;
}

std::vector<std::string> list_presets(const std::string& directory) {
  std::error_code code;
  std::vector<std::string> names;
  for (fs::directory_iterator it(directory, code), end; !code && it != end; it.increment(code)) {
    if (it->path().extension() == ".toml") names.push_back(it->path().stem().string());
  }
  if (code) {
    throw Error(Errc::io,
                fmt::format("{}: cannot list the model presets: {}; SHUNT_PRESETS names their directory",
                            directory, code.message()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

ModelShape find_model_shape(const std::string& name, const std::string& directory) {
  if (name.ends_with(".toml")) return read_model_shape(name);
  const std::vector<std::string> names = list_presets(directory);
  if (std::find(names.begin(), names.end(), name) != names.end()) {
    return read_model_shape((fs::path(directory) / (name + ".toml")).string());
  }
  if (names.empty()) {
    throw Error(Errc::invalid_argument,
                fmt::format("model preset \"{}\": {} holds no presets", name, directory));
  }
  throw Error(
      Errc::invalid_argument,
      fmt::format("model preset \"{}\" does not exist; did you mean \"{}\"? Allowed are a path that ends in "
                  ".toml and {}",
                  name, detail::nearest(name, names), fmt::join(names, ", ")));
}

std::string preset_directory() {
  if (const char* given = std::getenv("SHUNT_PRESETS"); given != nullptr && *given != '\0') return given;
  std::error_code code;
  const fs::path program = fs::read_symlink("/proc/self/exe", code);
  const fs::path beside = program.parent_path().parent_path() / "share/shunt/presets/models";
  for (const fs::path& candidate :
       {beside, fs::path(SHUNT_SOURCE_PRESETS), fs::path(SHUNT_INSTALLED_PRESETS)}) {
    if (fs::is_directory(candidate, code)) return candidate.string();
  }
  return "./presets/models";
}

}  // namespace shunt

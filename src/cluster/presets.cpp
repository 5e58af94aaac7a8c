#include "presets.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/cluster/preset_folder.h>
#include <shunt/core/error.h>

#include <shunt/core/nearest.h>
#include "toml_reader.h"

namespace shunt::detail {

namespace fs = std::filesystem;

namespace {

[[noreturn]] void refuse(const std::string& name, const std::string& directory, const std::string& kind,
                         const std::vector<std::string>& names, const std::string& near) {
  if (names.empty()) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} preset \"{}\": {} holds no presets", kind, name, directory));
  }
  throw Error(Errc::invalid_argument,
              fmt::format("{} preset \"{}\" does not exist; {}llowed are a path that ends in .toml and {}",
                          kind, name, near.empty() ? "a" : fmt::format("did you mean \"{}\"? A", near),
                          fmt::join(names, ", ")));
}

/// "deepseek-ai/DeepSeek_R1" as "deepseek-r1".
std::string plain(const std::string& name) {
  std::string text = name.substr(name.find_last_of('/') + 1);
  for (char& c : text) {
    if (c == '_') c = '-';
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

/// Other names of a preset. One that cannot be read has none: whoever asks for it by its own name learns why.
std::vector<std::string> other_names(const std::string& path) {
  std::vector<std::string> names;
  try {
    const toml::table table = parse_toml(path);
    if (const toml::array* list = table["names"].as_array())
      for (const toml::node& item : *list)
        if (const auto text = item.value<std::string>()) names.push_back(*text);
  } catch (const Error&) {
    return {};
  }
  return names;
}

}  // namespace

std::string& preset_folder() noexcept {
  static std::string folder;
  return folder;
}

std::string find_directory(const char* environment, const std::string& folder) {
  if (const char* given = std::getenv(environment); given != nullptr && *given != '\0') return given;
  std::error_code code;
  const fs::path program = fs::read_symlink("/proc/self/exe", code);
  const fs::path beside = program.parent_path().parent_path() / "share/shunt/presets";
  for (const fs::path& candidate : {fs::path(preset_folder()), beside, fs::path(SHUNT_SOURCE_PRESETS),
                                    fs::path(SHUNT_INSTALLED_PRESETS)}) {
    if (!candidate.empty() && fs::is_directory(candidate / folder, code))
      return (candidate / folder).string();
  }
  return "./presets/" + folder;
}

std::vector<std::string> list_files(const std::string& directory, const std::string& kind,
                                    const char* environment) {
  std::error_code code;
  std::vector<std::string> names;
  for (fs::directory_iterator it(directory, code), end; !code && it != end; it.increment(code)) {
    if (it->path().extension() == ".toml") names.push_back(it->path().stem().string());
  }
  if (code) {
    throw Error(Errc::io, fmt::format("{}: cannot list the {} presets: {}; {} names their directory",
                                      directory, kind, code.message(), environment));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string find_file(const std::string& name, const std::string& directory, const std::string& kind,
                      const char* environment) {
  if (name.ends_with(".toml")) return name;
  const std::vector<std::string> names = list_files(directory, kind, environment);
  if (std::find(names.begin(), names.end(), name) != names.end())
    return (fs::path(directory) / (name + ".toml")).string();
  refuse(name, directory, kind, names, near_name(name, names));
}

std::string find_model_file(const std::string& name, const std::string& directory) {
  if (name.ends_with(".toml")) return name;
  const std::vector<std::string> names = list_files(directory, "model", "SHUNT_PRESETS");
  const auto path_of = [&](const std::string& preset) {
    return (fs::path(directory) / (preset + ".toml")).string();
  };
  if (std::find(names.begin(), names.end(), name) != names.end()) return path_of(name);
  const std::string wanted = plain(name);
  std::vector<std::string> all = names;
  for (const std::string& preset : names) {
    if (plain(preset) == wanted) return path_of(preset);
    for (const std::string& other : other_names(path_of(preset))) {
      if (plain(other) == wanted) return path_of(preset);
      all.push_back(other);
    }
  }
  refuse(name, directory, "model", names, near_name(wanted, all));
}

std::string stem(const std::string& path) {
  return fs::path(path).stem().string();
}

}  // namespace shunt::detail

void shunt::set_preset_folder(std::string folder) {
  shunt::detail::preset_folder() = std::move(folder);
}

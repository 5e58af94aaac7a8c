#include "presets.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <shunt/core/error.h>

#include "nearest.h"

namespace shunt::detail {

namespace fs = std::filesystem;

std::string find_directory(const char* environment, const std::string& folder) {
  if (const char* given = std::getenv(environment); given != nullptr && *given != '\0') return given;
  std::error_code code;
  const fs::path program = fs::read_symlink("/proc/self/exe", code);
  const fs::path beside = program.parent_path().parent_path() / "share/shunt/presets";
  for (const fs::path& candidate :
       {beside, fs::path(SHUNT_SOURCE_PRESETS), fs::path(SHUNT_INSTALLED_PRESETS)}) {
    if (fs::is_directory(candidate / folder, code)) return (candidate / folder).string();
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
  if (names.empty()) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} preset \"{}\": {} holds no presets", kind, name, directory));
  }
  throw Error(
      Errc::invalid_argument,
      fmt::format("{} preset \"{}\" does not exist; did you mean \"{}\"? Allowed are a path that ends in "
                  ".toml and {}",
                  kind, name, nearest(name, names), fmt::join(names, ", ")));
}

std::string stem(const std::string& path) {
  return fs::path(path).stem().string();
}

}  // namespace shunt::detail

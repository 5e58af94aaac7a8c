#include <shunt/core/plugin.h>

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <vector>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt {
namespace {

std::vector<std::filesystem::path> folders() {
  std::vector<std::filesystem::path> found;
  if (const char* given = std::getenv("SHUNT_PLUGIN_PATH"); given != nullptr && *given != '\0')
    found.emplace_back(given);
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return found;
  const std::filesystem::path own = program.parent_path();
  found.push_back(own);
  found.push_back(own.parent_path());
  found.push_back(own.parent_path() / "lib" / "shunt");
  return found;
}

}  // namespace

void* load_plugin(const std::string& name, const std::string& function, std::string& searched) {
  const std::string file = fmt::format("lib{}.so", name);
  searched.clear();
  for (const std::filesystem::path& folder : folders()) {
    const std::filesystem::path path = folder / file;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      searched += (searched.empty() ? "" : ", ") + folder.string();
      continue;
    }
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr)
      throw Error(Errc::unavailable, fmt::format("{} cannot be loaded: {}", file, dlerror()));
    void* found = dlsym(handle, function.c_str());
    if (found == nullptr)
      throw Error(Errc::unavailable, fmt::format("{} has no function {}", path.string(), function));
    return found;
  }
  return nullptr;
}

}  // namespace shunt

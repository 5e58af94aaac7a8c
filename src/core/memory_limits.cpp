#include "memory_limits.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include <shunt/core/host.h>

namespace shunt {
namespace detail {
namespace {

/// First word of a file as a number; nothing where it is missing or not one ("max").
std::optional<std::int64_t> read_number(const std::string& path) {
  std::ifstream in(path);
  std::string word;
  if (!(in >> word)) return std::nullopt;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error == std::errc::result_out_of_range) return std::numeric_limits<std::int64_t>::max();
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return value;
}

/// Value after `key` in a file of "key value" lines.
std::optional<std::int64_t> read_keyed(const std::string& path, std::string_view key) {
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string name;
    std::int64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

bool has_option(std::string_view options, std::string_view wanted) {
  while (!options.empty()) {
    const std::size_t comma = options.find(',');
    if (options.substr(0, comma) == wanted) return true;
    options = comma == std::string_view::npos ? std::string_view() : options.substr(comma + 1);
  }
  return false;
}

/// Where a hierarchy is mounted, and which of its groups the mount point shows.
struct Mount {
  std::string point;
  std::string group;
  bool unified = false;  ///< cgroup v2
};

std::vector<Mount> memory_mounts(const std::string& root) {
  std::vector<Mount> mounts;
  std::ifstream in(root + "/proc/self/mountinfo");
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream left(line.substr(0, dash));
    std::istringstream right(line.substr(dash + 3));
    std::string id, parent, device, type, source, options;
    Mount mount;
    left >> id >> parent >> device >> mount.group >> mount.point;
    right >> type >> source >> options;
    mount.unified = type == "cgroup2";
    if (mount.unified || (type == "cgroup" && has_option(options, "memory"))) mounts.push_back(mount);
  }
  return mounts;
}

/// This process's group in the v1 memory hierarchy or in the unified one.
std::optional<std::string> own_group(const std::string& root, bool unified) {
  std::ifstream in(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (unified ? line.substr(0, second) == "0:" : has_option(controllers, "memory"))
      return line.substr(second + 1);
  }
  return std::nullopt;
}

/// What one group leaves. File pages that nobody uses count as free: the kernel drops them before it refuses.
std::optional<std::int64_t> left_in_group(const std::string& folder, bool unified) {
  const auto limit = read_number(folder + (unified ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto used = read_number(folder + (unified ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!limit || !used) return std::nullopt;
  const auto droppable =
      read_keyed(folder + "/memory.stat", unified ? "inactive_file" : "total_inactive_file").value_or(0);
  const std::int64_t held = std::max<std::int64_t>(0, *used - droppable);
  return std::max<std::int64_t>(0, *limit - held);
}

/// The group's folder below the mount point: "" for the mount point itself, which is also the answer where
/// the group lies outside of what is mounted (a container without a cgroup namespace of its own).
std::string folder_below_mount(const Mount& mount, std::string group) {
  if (mount.group != "/") {
    if (group.compare(0, mount.group.size(), mount.group) != 0) return "";
    group = group.substr(mount.group.size());
    if (!group.empty() && group.front() != '/') return "";
  }
  if (group.find("/..") != std::string::npos) return "";
  while (!group.empty() && group.back() == '/') group.pop_back();
  return group;
}

}  // namespace

std::int64_t available_memory_bytes(const std::string& root) {
  std::optional<std::int64_t> best;
  const auto lower = [&best](std::optional<std::int64_t> value) {
    if (value) best = best ? std::min(*best, *value) : *value;
  };
  if (const auto kib = read_keyed(root + "/proc/meminfo", "MemAvailable:")) lower(*kib * 1024);
  for (const Mount& mount : memory_mounts(root)) {
    const auto group = own_group(root, mount.unified);
    if (!group) continue;
    std::string folder = folder_below_mount(mount, *group);
    for (;;) {
      lower(left_in_group(root + mount.point + folder, mount.unified));
      if (folder.empty()) break;
      folder.erase(folder.rfind('/'));
    }
  }
  return best.value_or(-1);
}

}  // namespace detail

std::int64_t available_memory_bytes() {
  return detail::available_memory_bytes("");
}

}  // namespace shunt

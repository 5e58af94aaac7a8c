#include <shunt/core/host.h>

#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <fstream>
#include <string>
#include <thread>

#include <fmt/format.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace shunt {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

/// Text after "key :" or "key:" in the first line of `path` that starts with `key`.
std::string field(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    if (line.compare(0, key.size(), key) != 0) continue;
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == std::string::npos ? std::string() : line.substr(start);
  }
  return {};
}

/// Leading digits of a text; 0 where there are none or too many.
std::int64_t leading_number(const std::string& text) {
  std::int64_t value = 0;
  for (std::size_t i = 0; i < text.size() && i < 18 && text[i] >= '0' && text[i] <= '9'; ++i)
    value = value * 10 + (text[i] - '0');
  return value;
}

/// "[madvise]" out of "always [madvise] never".
std::string selected_word(const std::string& line) {
  const std::size_t open = line.find('[');
  const std::size_t close = line.find(']', open == std::string::npos ? 0 : open);
  if (open == std::string::npos || close == std::string::npos) return {};
  return line.substr(open + 1, close - open - 1);
}

std::int64_t cache_bytes(const std::string& level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}", index);
    if (first_line(folder + "/level") != level || first_line(folder + "/type") == "Instruction") continue;
    const std::string size = first_line(folder + "/size");
    const std::int64_t unit = size.find('M') != std::string::npos   ? 1 << 20
                              : size.find('K') != std::string::npos ? 1 << 10
                                                                    : 1;
    return leading_number(size) * unit;
  }
  return 0;
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
  [[maybe_unused]] const auto add = [&found](bool present, const char* name) {
    if (present) found.emplace_back(name);
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool leaf1 = __get_cpuid(1, &a, &b, &c, &d) != 0;
  const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  add(avx2, "avx2");
  add(__builtin_cpu_supports("fma") != 0, "fma");
  add(avx2 && leaf1 && (c & bit_F16C) != 0, "f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  add(avx512, "avx512f");
  add(__builtin_cpu_supports("avx512bw") != 0, "avx512bw");
  add(__builtin_cpu_supports("avx512vl") != 0, "avx512vl");
  add(__builtin_cpu_supports("avx512dq") != 0, "avx512dq");
  const bool leaf7 = __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0;
  add(avx512 && leaf7 && (a & (1U << 5)) != 0, "avx512_bf16");
#elif defined(__aarch64__)
  add(true, "neon");
#endif
  return found;
}

}  // namespace

std::int32_t available_cores() {
  // The mask grows until the kernel's fits: machines with more than 1024 CPUs exist.
  for (std::size_t cpus = 1024; cpus <= (1U << 20); cpus *= 2) {
    std::vector<unsigned long> words(cpus / (8 * sizeof(unsigned long)));
    const std::size_t bytes = words.size() * sizeof(unsigned long);
    auto* mask = reinterpret_cast<cpu_set_t*>(words.data());
    if (sched_getaffinity(0, bytes, mask) == 0) return std::max(1, CPU_COUNT_S(bytes, mask));
    if (errno != EINVAL) break;
  }
  return std::max(1, static_cast<std::int32_t>(std::thread::hardware_concurrency()));
}

HostInfo read_host_info() {
  HostInfo info;
  utsname names{};
  if (uname(&names) == 0) {
    info.hostname = names.nodename;
    info.kernel = fmt::format("{} {}", names.sysname, names.release);
  }
  info.cpu_model = field("/proc/cpuinfo", "model name");
  info.cpu_vendor = field("/proc/cpuinfo", "vendor_id");
  info.cpu_features = cpu_features();
  info.cores = available_cores();
  info.l2_bytes = cache_bytes("2");
  info.l3_bytes = cache_bytes("3");
  info.memory_total_bytes = leading_number(field("/proc/meminfo", "MemTotal")) * 1024;
  info.memory_available_bytes = available_memory_bytes();
  const std::string huge = "/sys/kernel/mm/transparent_hugepage/";
  info.transparent_hugepages = selected_word(first_line(huge + "enabled"));
  info.shmem_hugepages = selected_word(first_line(huge + "shmem_enabled"));
  info.hugetlb_pages_free = leading_number(field("/proc/meminfo", "HugePages_Free"));
  return info;
}

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  std::getline(file, text);
  return text;
}

std::string format_bytes(std::int64_t bytes) {
  if (bytes > -1024 && bytes < 1024) return fmt::format("{} byte{}", bytes, bytes == 1 ? "" : "s");
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  // From 1023.5 on three digits would round to 1024.
  for (; std::abs(value) >= 1023.5 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  const int digits = std::abs(value) < 9.995 ? 2 : std::abs(value) < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f} {}", value, digits, kUnits[unit]);
}

}  // namespace shunt

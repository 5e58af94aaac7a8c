#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shunt {

/// What this machine is, as far as the operating system shows it. Fields that cannot be read are empty or 0.
struct HostInfo {
  std::string hostname;
  std::string cpu_model;
  std::string cpu_vendor;  ///< "AuthenticAMD", "GenuineIntel", … or empty
  /// Of those Shunt uses: avx2 fma f16c avx512f avx512bw avx512vl avx512_bf16 neon …
  std::vector<std::string> cpu_features;
  std::string kernel;
  std::int32_t cores = 0;     ///< CPUs this process may run on (sched_getaffinity).
  std::int64_t l2_bytes = 0;  ///< Per core.
  std::int64_t l3_bytes = 0;  ///< Of one cache.
  std::int64_t memory_total_bytes = 0;
  std::int64_t memory_available_bytes = 0;  ///< See available_memory_bytes().
  std::string transparent_hugepages;    ///< Selected value of /sys/kernel/mm/transparent_hugepage/enabled.
  std::string shmem_hugepages;          ///< Likewise shmem_enabled.
  std::int64_t hugetlb_pages_free = 0;  ///< Reserved huge pages not in use.
};

[[nodiscard]] HostInfo read_host_info();

/// Bytes that can still be allocated without swapping: the smaller of MemAvailable and what the cgroup (v1 or v2,
/// every ancestor) leaves. -1 where neither can be read.
[[nodiscard]] std::int64_t available_memory_bytes();

/// CPUs this process may run on; at least 1.
[[nodiscard]] std::int32_t available_cores();

/// Name of this boot of this kernel: equal in all processes and containers of a running machine, and in no other. Empty
/// where the system does not tell.
[[nodiscard]] std::string boot_id();

/// "1.50 GiB", "812 KiB", "17 bytes": binary units for memory, as in messages.
[[nodiscard]] std::string format_bytes(std::int64_t bytes);

}  // namespace shunt

#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

#include "cuda_ipc/driver.h"

namespace shunt::cuda_ipc {

/// Device memory that this process has mapped, whichever rank of it asked. Physical memory belongs to the driver and
/// lives until no process maps it and no descriptor of it is open.
/// Threads: any.
class DeviceAllocations {
 public:
  [[nodiscard]] static DeviceAllocations& of_process();

  /// New memory of GPU `device`, not zeroed. `exportable`: for export_file().
  /// Errors: Errc::out_of_memory, Errc::unavailable.
  [[nodiscard]] std::byte* create(int device, std::int64_t bytes, bool exportable);
  /// Memory behind `file`, for GPU `device`.
  [[nodiscard]] std::byte* import(int device, int file, std::int64_t bytes);
  /// One more share, also for GPU `device`.
  void share(std::byte* memory, int device);
  /// Descriptor, which the caller closes.
  [[nodiscard]] int export_file(const std::byte* memory);
  void release(std::byte* memory) noexcept;

 private:
  struct Allocation {
    CUmemGenericAllocationHandle handle = 0;
    std::int64_t bytes = 0;
    std::int32_t shares = 0;
    int device = 0;
    bool plain = false;  ///< From cudaMalloc, where the driver has no virtual memory management
  };

  [[nodiscard]] std::byte* map(const Driver& driver, const Allocation& allocation, int device);
  [[nodiscard]] std::byte* create_plain(int device, std::int64_t bytes);

  std::mutex mutex_;
  std::map<std::uintptr_t, Allocation> allocations_;
};

/// Whether GPU `device` has the attribute.
[[nodiscard]] bool has_attribute(CUdevice_attribute attribute, int device);
/// What allocations of `device` are multiples of.
[[nodiscard]] std::int64_t allocation_granule(int device);

}  // namespace shunt::cuda_ipc

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "cuda_ipc/device_api.h"

namespace shunt::testing_support {

struct FakeGpuOptions {
  std::int32_t devices = 1;
  std::int64_t bytes_each = std::int64_t{1} << 30;
  bool connected = true;      ///< They reach each other's memory
  bool exports_files = true;  ///< Memory can be shared between processes
};

/// What goes wrong in one rank: so many of its first calls fail.
struct FakeGpuFaults {
  std::int32_t allocations = 0;  ///< out_of_memory, whatever is free
  std::int32_t exports = 0;
  std::int32_t imports = 0;  ///< Of another process's memory, or shares within this one
};

/// GPUs of a machine that has none. Their memory is memfds, which processes and threads share as the driver's is shared,
/// but the addresses that ranks are given cannot be loaded or stored: who forgets that it is device memory crashes.
/// Copies and signals are held back until synchronize(), or a random part of them less long.
/// Made before the ranks are; what is free is counted over all of them.
class FakeGpus {
 public:
  explicit FakeGpus(const FakeGpuOptions& options);
  ~FakeGpus();
  FakeGpus(const FakeGpus&) = delete;
  FakeGpus& operator=(const FakeGpus&) = delete;

  /// The GPU number local_rank % devices.
  [[nodiscard]] std::unique_ptr<cuda_ipc::DeviceApi> open(std::int32_t local_rank,
                                                          const FakeGpuFaults& faults = {}) const;
  /// Bytes that ranks hold on a device: what they allocated and have not released themselves.
  [[nodiscard]] std::int64_t used(std::int32_t device) const;

 private:
  FakeGpuOptions options_;
  std::int64_t* used_;  ///< [devices], shared by all ranks
};

/// Mappings of device memory in this process.
[[nodiscard]] std::int64_t fake_gpu_mappings();

}  // namespace shunt::testing_support

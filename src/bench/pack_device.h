#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <shunt/pack/cuda.h>

#include "gpu/touch.h"

namespace shunt::bench {

/// Where the calls of pack run and are timed: one core, or one GPU. Memory is the device's own, lives as long as the object,
/// and begins at multiples of 256 bytes.
class PackDevice {
 public:
  PackDevice() = default;
  virtual ~PackDevice() = default;
  PackDevice(const PackDevice&) = delete;
  PackDevice& operator=(const PackDevice&) = delete;

  [[nodiscard]] virtual std::string description() const = 0;
  [[nodiscard]] virtual std::int64_t free_bytes() const = 0;  ///< 0: not known
  /// Never null. Errors: Errc::out_of_memory.
  [[nodiscard]] virtual void* allocate(std::int64_t bytes) = 0;
  virtual void write(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void read(void* to, const void* from, std::int64_t bytes) = 0;  ///< After all calls before

  virtual void make_plan(const cuda::PlanInput& input, const cuda::Plan& plan, void* workspace) = 0;
  virtual void gather(const cuda::Gather& gather) = 0;
  virtual void scatter(const cuda::Scatter& scatter) = 0;
  virtual void combine(const cuda::Combine& combine) = 0;
  virtual void copy(void* to, const void* from, std::int64_t bytes) = 0;
  virtual void fill(void* to, int value, std::int64_t bytes) = 0;
  virtual void touch(const GpuTouch& touch) = 0;

  /// Microseconds of each of `iterations` runs of `work`, after `warmup` untimed ones. cold: caches hold nothing of it.
  [[nodiscard]] virtual std::vector<double> time_us(const std::function<void()>& work, std::int64_t warmup,
                                                    std::int64_t iterations, bool cold) = 0;
};

[[nodiscard]] std::unique_ptr<PackDevice> make_cpu_pack_device();
/// `stream`: that of the caller, which outlives the device; null: one of its own.
/// Errors: Errc::unavailable with the reason.
[[nodiscard]] std::unique_ptr<PackDevice> make_cuda_pack_device(cuda::LaunchLimit limit,
                                                                cuda::Stream stream = nullptr);

}  // namespace shunt::bench

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <shunt/core/record.h>

namespace shunt::bench {

/// A GPU as the driver tells of it.
struct GpuFacts {
  std::int32_t ordinal = 0;
  std::string name;
  std::int64_t memory_bytes = 0;
  std::int32_t capability = 0;      ///< 90 for 9.0
  bool exports_memory = false;      ///< Its memory can be shared between processes (transport cuda_ipc)
  bool dma_buf = false;             ///< NICs can reach its memory without nvidia_peermem
  std::vector<std::int32_t> peers;  ///< GPUs whose memory it can load and store
};

/// What libcuda answered.
struct DriverAnswer {
  std::int32_t version = 0;  ///< CUDA version that the driver supports: 13000 for 13.0; 0: not known
  std::string reason;        ///< Why there are no GPUs; empty where there are
  std::vector<GpuFacts> gpus;
};

/// One record each of the driver, the parts that GPU communication wants, and every GPU. Asks the driver in a child.
/// `root` is put before the paths of files that are read, for tests.
[[nodiscard]] std::vector<Record> examine_gpus(const std::string& root = {});
/// The same for people.
[[nodiscard]] std::string format_gpus(const std::vector<Record>& records);

/// What a child that asked libcuda has written: lines of tab-separated fields. Nothing where it is malformed.
[[nodiscard]] std::optional<DriverAnswer> parse_driver_answer(std::string_view text);
/// The kernel module's version in /proc/driver/nvidia/version; empty where it has none.
[[nodiscard]] std::string parse_module_version(std::string_view text);
/// Value of `name` in /proc/driver/nvidia/params, without quotes; empty where it is not there.
[[nodiscard]] std::string parse_module_parameter(std::string_view text, std::string_view name);
/// The parts and GPUs as examine_gpus() reports them, without asking the driver.
[[nodiscard]] std::vector<Record> gpu_records(const std::string& root, const DriverAnswer& answer);

}  // namespace shunt::bench

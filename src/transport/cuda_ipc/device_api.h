#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace shunt::cuda_ipc {

/// Tells GPUs apart, also between processes that number them differently.
using DeviceId = std::array<std::byte, 16>;

struct DeviceFacts {
  DeviceId id{};
  std::int32_t ordinal = 0;  ///< As this process numbers them
  std::string name;
  bool shares_with_processes = true;  ///< Memory can be exported as a file descriptor
};

struct DeviceMemory {
  std::int64_t free_bytes = 0;
  std::int64_t total_bytes = 0;
};

/// What DeviceTransport needs of one GPU, as one rank uses it. Addresses that it gives out are not for the CPU to load.
/// An allocation lives until the last of its shares is released, in whichever process that is, so a rank may give its
/// part back while others still read it.
/// Threads: one rank's object is used by one thread at a time; objects of several threads may share an allocation.
/// Errors:  shunt::Error: out_of_memory and unavailable leave the object usable; internal, with the driver's own words,
///          where the device has failed: the object is dead then.
class DeviceApi {
 public:
  DeviceApi() = default;
  virtual ~DeviceApi() = default;
  DeviceApi(const DeviceApi&) = delete;
  DeviceApi& operator=(const DeviceApi&) = delete;

  [[nodiscard]] virtual const DeviceFacts& device() const noexcept = 0;
  [[nodiscard]] virtual DeviceMemory memory() = 0;
  /// Whether this GPU can load and store the memory of `other`; nothing where this process does not see it.
  [[nodiscard]] virtual std::optional<bool> reaches(const DeviceId& other) = 0;
  /// Sizes of allocations are multiples of it.
  [[nodiscard]] virtual std::int64_t granule() const noexcept = 0;

  /// Zeroed memory of this GPU: the first share of it.
  [[nodiscard]] virtual std::byte* allocate(std::int64_t bytes) = 0;
  /// A descriptor by which other processes get a share; the caller closes it.
  [[nodiscard]] virtual int export_file(const std::byte* memory) = 0;
  /// One more share of another process's allocation; `file` stays the caller's.
  [[nodiscard]] virtual std::byte* import_file(int file, std::int64_t bytes) = 0;
  /// One more share of an allocation of another rank of this process, reachable from this GPU too. Result: `memory`.
  [[nodiscard]] virtual std::byte* share(std::byte* memory) = 0;
  /// Gives one share back.
  virtual void release(std::byte* memory) noexcept = 0;

  /// Starts a copy between host and device memory, in either direction; copies and signals take effect one after the
  /// other. `from` must stay as it is until synchronize().
  virtual void copy(void* to, const void* from, std::int64_t bytes) = 0;
  /// Starts storing `value` to a word of device memory, after everything started before.
  virtual void store_signal(std::byte* word, std::uint64_t value) = 0;
  /// The word as it is now, whatever has been started.
  [[nodiscard]] virtual std::uint64_t load_signal(const std::byte* word) = 0;
  /// Returns when everything started has taken effect.
  virtual void synchronize() = 0;
};

}  // namespace shunt::cuda_ipc

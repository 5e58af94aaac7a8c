#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <shunt/transport/transport.h>

#include "heap/symmetric_heap.h"

namespace shunt::heap {

/// Libraries of symmetric GPU memory are reached through plugins, shared libraries of this build: so the command and the
/// library start on machines without NVSHMEM or NCCL and say what is missing, and the device code of NVSHMEM, which must be
/// linked with libnvshmem_device in one step, needs no such step in the programs that use Shunt.

/// What a rank finds out about itself before the ranks enter the library together.
struct Preflight {
  std::string reason = {};                ///< Why it cannot take part; empty where it can
  std::array<std::byte, 16> device = {};  ///< Its GPU, by UUID
  bool shared_by_mps = false;  ///< Processes run side by side on it, by CUDA's Multi-Process Service
};

/// Whether a library serves several ranks on one GPU.
enum class GpuSharing : std::uint8_t { allowed, by_mps, refused };

/// What a plugin offers. Both sides are of one build; kPluginBuild tells others apart.
struct PluginTable {
  const char* build = nullptr;
  bool one_rank_per_process = false;  ///< Ranks must be processes
  GpuSharing sharing = GpuSharing::allowed;
  std::string (*description)() = nullptr;  ///< Name and version of the library
  Preflight (*preflight)(const HeapOptions&) = nullptr;
  std::vector<std::byte> (*unique_id)() = nullptr;
  SymmetricHeap* (*open)(const HeapOptions&) = nullptr;
  /// See Transport::make_kernel_engine().
  void* (*make_engine)(SymmetricHeap&, const World&) = nullptr;
};

inline constexpr const char* kPluginBuild = "shunt heap plugin 3";
/// Name of the function of a plugin, extern "C", that returns its const PluginTable*.
inline constexpr const char* kPluginFunction = "shunt_heap_plugin";

/// The plugin libshunt_<name>.so, loaded at the first call, from SHUNT_PLUGIN_PATH, the folder of the program, the one
/// above, or ../lib/shunt. Never unloaded.
/// Errors: Errc::unavailable with the reason.
[[nodiscard]] const PluginTable& plugin(const std::string& name);

/// Whether `name` is a transport over such a library, in any build.
[[nodiscard]] bool is_heap(const std::string& name) noexcept;
/// Why no rank can have transport `name` here, or empty. Loads the plugin and asks CUDA in a forked process, once.
[[nodiscard]] std::string unavailable_reason_from_child(const std::string& name);
/// Name and version of the library, asked likewise; only where it is available.
[[nodiscard]] std::string description_from_child(const std::string& name);

/// How the ranks of a node run, and on what.
struct RankPlaces {
  std::vector<std::int32_t> devices = {};  ///< As HeapOptions::devices
  bool processes = true;
};
/// Collective: the ranks find out whether all of them can enter, and do. `host` must outlive the result, unless it is
/// `owned`.
/// Errors: Errc::unavailable on every rank alike, naming the rank that cannot and why.
[[nodiscard]] std::unique_ptr<Transport> open_heap_transport(const PluginTable& table,
                                                             const std::string& name,
                                                             const RankPlaces& places, Transport& host,
                                                             Deadline deadline,
                                                             std::unique_ptr<Transport> owned = nullptr);

}  // namespace shunt::heap

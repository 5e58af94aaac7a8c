#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cuda_ipc/device_api.h"

namespace shunt::cuda_ipc {

// Every function is defined in every build.

/// Whether this process uses CUDA already; a child that it forks cannot then. Asking changes nothing.
[[nodiscard]] bool cuda_has_begun();

/// Gives this thread its CUDA context, and with it its current device, back at its end.
class KeptContext {
 public:
  KeptContext();
  ~KeptContext();
  KeptContext(const KeptContext&) = delete;
  KeptContext& operator=(const KeptContext&) = delete;

 private:
  void* driver_;  ///< Null where this process has not loaded it
  void* context_ = nullptr;
  bool known_ = false;
};

/// Why no rank can have a GPU here; empty where it can. Asks CUDA, so not in a process that is about to fork: that one
/// calls cuda_unavailable_reason_from_child().
[[nodiscard]] std::string cuda_unavailable_reason();
/// The same, asked in a forked process, once; in this one where it uses CUDA already.
[[nodiscard]] std::string cuda_unavailable_reason_from_child();

/// GPUs that ranks take, as `text` lists them ("0,2"); null or empty: all.
/// Errors: Errc::invalid_argument naming SHUNT_DEVICE, its value and what is allowed.
[[nodiscard]] std::vector<std::int32_t> parse_devices(const char* text);
/// The GPU of the rank that is number `local_rank` on its node: the devices listed in turn, or all `count` of them.
/// Errors: Errc::invalid_argument where a listed one is not there.
[[nodiscard]] std::int32_t choose_device(const std::vector<std::int32_t>& listed, std::int32_t local_rank,
                                         std::int32_t count);

/// The GPU of this rank. `listed` as choose_device().
/// Errors: Errc::unavailable with the reason, Errc::invalid_argument.
[[nodiscard]] std::unique_ptr<DeviceApi> make_cuda_api(const std::vector<std::int32_t>& listed,
                                                       std::int32_t local_rank);

}  // namespace shunt::cuda_ipc

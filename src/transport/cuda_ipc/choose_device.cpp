#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>

#include <shunt/core/child.h>
#include <shunt/core/error.h>

#include "cuda_ipc/cuda_api.h"
#include "environment.h"

namespace shunt::cuda_ipc {
namespace {

/// More GPUs than any node has.
constexpr std::int32_t kMostDevices = 1024;
constexpr auto kPatience = std::chrono::seconds(60);

/// The driver's library where this process has it already, to be closed again; else null.
[[nodiscard]] void* loaded_driver() {
  return dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
}

}  // namespace

bool cuda_has_begun() {
  void* driver = loaded_driver();
  if (driver == nullptr) return false;
  auto* const count = reinterpret_cast<int (*)(int*)>(dlsym(driver, "cuDeviceGetCount"));
  int devices = 0;
  const bool begun = count != nullptr && count(&devices) == 0;
  dlclose(driver);
  return begun;
}

KeptContext::KeptContext() : driver_(loaded_driver()) {
  if (driver_ == nullptr) return;
  auto* const get = reinterpret_cast<int (*)(void**)>(dlsym(driver_, "cuCtxGetCurrent"));
  known_ = get != nullptr && get(&context_) == 0;
}

KeptContext::~KeptContext() {
  if (driver_ == nullptr) return;
  auto* const set = reinterpret_cast<int (*)(void*)>(dlsym(driver_, "cuCtxSetCurrent"));
  if (known_ && set != nullptr) static_cast<void>(set(context_));
  dlclose(driver_);
}

std::vector<std::int32_t> parse_devices(const char* text) {
  std::vector<std::int32_t> devices;
  std::string_view rest = text == nullptr ? "" : text;
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    devices.push_back(parse_number("SHUNT_DEVICE", rest.substr(0, comma), 0, kMostDevices - 1));
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
    if (rest.empty()) {
      throw Error(
          Errc::invalid_argument,
          fmt::format("environment: SHUNT_DEVICE='{}' ends with a comma; numbers of GPUs separated by "
                      "commas are allowed",
                      text));
    }
  }
  return devices;
}

std::int32_t choose_device(const std::vector<std::int32_t>& listed, std::int32_t local_rank,
                           std::int32_t count) {
  if (listed.empty()) return local_rank % count;
  const std::int32_t device = listed[static_cast<std::size_t>(local_rank) % listed.size()];
  if (device >= 0 && device < count) return device;
  throw Error(
      Errc::invalid_argument,
      fmt::format("GPU {} for the rank that is number {} on its node, but this process sees {}; GPUs 0 "
                  "to {} are allowed (SHUNT_DEVICE, CUDA_VISIBLE_DEVICES)",
                  device, local_rank, count, count - 1));
}

std::string cuda_unavailable_reason_from_child() {
  // A child of it could not ask any more.
  if (cuda_has_begun()) return cuda_unavailable_reason();
  static const std::string reason = ask_in_child([] { return cuda_unavailable_reason(); }, kPatience)
                                        .value_or("asking the CUDA driver crashes or takes longer than 60 s");
  return reason;
}

}  // namespace shunt::cuda_ipc

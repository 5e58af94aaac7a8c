#include "cuda_ipc/driver.h"

#include <dlfcn.h>

#include <fmt/format.h>

#include <shunt/core/error.h>

namespace shunt::cuda_ipc {
namespace {

[[nodiscard]] Driver load() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    throw Error(Errc::unavailable, "libcuda.so.1, the CUDA driver's library, is not there");
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr)
      throw Error(Errc::unavailable, fmt::format("the CUDA driver is too old: it has no {}", name));
  };
  Driver driver;
  find(driver.error_string, "cuGetErrorString");
  find(driver.device_attribute, "cuDeviceGetAttribute");
  find(driver.granularity, "cuMemGetAllocationGranularity");
  find(driver.create, "cuMemCreate");
  find(driver.release, "cuMemRelease");
  find(driver.reserve, "cuMemAddressReserve");
  find(driver.free_address, "cuMemAddressFree");
  find(driver.map, "cuMemMap");
  find(driver.unmap, "cuMemUnmap");
  find(driver.set_access, "cuMemSetAccess");
  find(driver.export_handle, "cuMemExportToShareableHandle");
  find(driver.import_handle, "cuMemImportFromShareableHandle");
  // The second version: the first needs an option of the kernel module.
  find(driver.write_value, "cuStreamWriteValue64_v2");
  return driver;
}

}  // namespace

const Driver& Driver::get() {
  static const Driver driver = load();
  return driver;
}

std::string Driver::text(CUresult result) const {
  const char* words = nullptr;
  if (error_string(result, &words) != CUDA_SUCCESS || words == nullptr)
    return fmt::format("CUDA error {}", static_cast<int>(result));
  return words;
}

}  // namespace shunt::cuda_ipc

#pragma once

#include <cuda.h>

#include <string>

namespace shunt::cuda_ipc {

/// What the runtime library has no functions for. Loaded and not linked: a program must start where there is no driver.
struct Driver {
  decltype(&::cuGetErrorString) error_string = nullptr;
  decltype(&::cuDeviceGetAttribute) device_attribute = nullptr;
  decltype(&::cuMemGetAllocationGranularity) granularity = nullptr;
  decltype(&::cuMemCreate) create = nullptr;
  decltype(&::cuMemRelease) release = nullptr;
  decltype(&::cuMemAddressReserve) reserve = nullptr;
  decltype(&::cuMemAddressFree) free_address = nullptr;
  decltype(&::cuMemMap) map = nullptr;
  decltype(&::cuMemUnmap) unmap = nullptr;
  decltype(&::cuMemSetAccess) set_access = nullptr;
  decltype(&::cuMemExportToShareableHandle) export_handle = nullptr;
  decltype(&::cuMemImportFromShareableHandle) import_handle = nullptr;
  decltype(&::cuStreamWriteValue64) write_value = nullptr;

  /// The one of this process.
  /// Errors: Errc::unavailable naming what is missing.
  [[nodiscard]] static const Driver& get();
  [[nodiscard]] std::string text(CUresult result) const;
};

}  // namespace shunt::cuda_ipc

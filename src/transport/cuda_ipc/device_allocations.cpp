#include "cuda_ipc/device_allocations.h"

#include <cuda_runtime_api.h>

#include <string>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::cuda_ipc {
namespace {

void check(const Driver& driver, CUresult result, const std::string& what,
           Errc otherwise = Errc::unavailable) {
  if (result == CUDA_SUCCESS) return;
  throw Error(result == CUDA_ERROR_OUT_OF_MEMORY ? Errc::out_of_memory : otherwise,
              fmt::format("{}: {}", what, driver.text(result)));
}

[[nodiscard]] CUmemAllocationProp properties(int device, bool exportable) {
  CUmemAllocationProp result{};
  result.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  result.location = {};
  result.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  result.location.id = device;
  result.requestedHandleTypes =
      exportable ? CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR : CU_MEM_HANDLE_TYPE_NONE;
  return result;
}

[[nodiscard]] CUdeviceptr address_of(const std::byte* memory) {
  return static_cast<CUdeviceptr>(reinterpret_cast<std::uintptr_t>(memory));
}

void allow(const Driver& driver, CUdeviceptr address, std::int64_t bytes, int device) {
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  check(driver, driver.set_access(address, static_cast<std::size_t>(bytes), &access, 1),
        fmt::format("GPU {} gets no access to memory", device));
}

[[noreturn]] void throw_unknown() {
  throw Error(Errc::unavailable, "the memory has been released meanwhile");
}

}  // namespace

bool has_attribute(CUdevice_attribute attribute, int device) {
  int value = 0;
  return Driver::get().device_attribute(&value, attribute, device) == CUDA_SUCCESS && value != 0;
}

std::int64_t allocation_granule(int device) {
  const Driver& driver = Driver::get();
  const CUmemAllocationProp wanted = properties(device, false);
  std::size_t granule = 0;
  if (driver.granularity(&granule, &wanted, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED) != CUDA_SUCCESS ||
      granule == 0)
    return std::int64_t{2} << 20;
  return static_cast<std::int64_t>(granule);
}

DeviceAllocations& DeviceAllocations::of_process() {
  // Never destroyed: at the end of a process the driver may be gone first.
  static auto* const all = new DeviceAllocations();
  return *all;
}

std::byte* DeviceAllocations::create(int device, std::int64_t bytes, bool exportable) {
  if (!has_attribute(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, device))
    return create_plain(device, bytes);
  const Driver& driver = Driver::get();
  const CUmemAllocationProp wanted = properties(device, exportable);
  Allocation allocation{.handle = 0, .bytes = bytes, .shares = 1, .device = device, .plain = false};
  check(driver, driver.create(&allocation.handle, static_cast<std::size_t>(bytes), &wanted, 0),
        fmt::format("could not get its {} on GPU {}", format_bytes(bytes), device));
  return map(driver, allocation, device);
}

std::byte* DeviceAllocations::create_plain(int device, std::int64_t bytes) {
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<std::size_t>(bytes));
  if (error != cudaSuccess) {
    throw Error(error == cudaErrorMemoryAllocation ? Errc::out_of_memory : Errc::unavailable,
                fmt::format("could not get its {} on GPU {}: {}", format_bytes(bytes), device,
                            cudaGetErrorString(error)));
  }
  const std::lock_guard lock(mutex_);
  allocations_[reinterpret_cast<std::uintptr_t>(memory)] = {
      .handle = 0, .bytes = bytes, .shares = 1, .device = device, .plain = true};
  return static_cast<std::byte*>(memory);
}

std::byte* DeviceAllocations::import(int device, int file, std::int64_t bytes) {
  const Driver& driver = Driver::get();
  Allocation allocation{.handle = 0, .bytes = bytes, .shares = 1, .device = device, .plain = false};
  auto* handle = reinterpret_cast<void*>(static_cast<std::intptr_t>(file));
  check(driver, driver.import_handle(&allocation.handle, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        "memory of another process cannot be opened");
  return map(driver, allocation, device);
}

/// Takes over the handle, also where this fails.
std::byte* DeviceAllocations::map(const Driver& driver, const Allocation& allocation, int device) {
  const auto size = static_cast<std::size_t>(allocation.bytes);
  CUdeviceptr address = 0;
  bool mapped = false;
  try {
    check(driver, driver.reserve(&address, size, 0, 0, 0), "no addresses are left for device memory");
    check(driver, driver.map(address, size, 0, allocation.handle, 0), "device memory cannot be mapped");
    mapped = true;
    allow(driver, address, allocation.bytes, device);
  } catch (...) {
    if (mapped) driver.unmap(address, size);
    if (address != 0) driver.free_address(address, size);
    driver.release(allocation.handle);
    throw;
  }
  const std::lock_guard lock(mutex_);
  allocations_[static_cast<std::uintptr_t>(address)] = allocation;
  return reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(address));
}

void DeviceAllocations::share(std::byte* memory, int device) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == allocations_.end()) throw_unknown();
  Allocation& allocation = found->second;
  if (allocation.device != device && !allocation.plain)
    allow(Driver::get(), address_of(memory), allocation.bytes, device);
  if (allocation.device != device && allocation.plain) {
    const cudaError_t error = cudaDeviceEnablePeerAccess(allocation.device, 0);
    if (error == cudaErrorPeerAccessAlreadyEnabled) static_cast<void>(cudaGetLastError());
    if (error != cudaSuccess && error != cudaErrorPeerAccessAlreadyEnabled) {
      throw Error(Errc::unavailable, fmt::format("GPU {} gets no access to GPU {}: {}", device,
                                                 allocation.device, cudaGetErrorString(error)));
    }
  }
  ++allocation.shares;
}

int DeviceAllocations::export_file(const std::byte* memory) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == allocations_.end()) throw_unknown();
  const Driver& driver = Driver::get();
  int file = -1;
  check(driver,
        driver.export_handle(&file, found->second.handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
        "memory cannot be exported to other processes");
  return file;
}

void DeviceAllocations::release(std::byte* memory) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(reinterpret_cast<std::uintptr_t>(memory));
  if (found == allocations_.end() || --found->second.shares > 0) return;
  const Allocation allocation = found->second;
  allocations_.erase(found);
  if (allocation.plain) {
    static_cast<void>(cudaFree(memory));
    return;
  }
  const Driver& driver = Driver::get();
  const auto size = static_cast<std::size_t>(allocation.bytes);
  driver.unmap(address_of(memory), size);
  driver.free_address(address_of(memory), size);
  driver.release(allocation.handle);
}

}  // namespace shunt::cuda_ipc

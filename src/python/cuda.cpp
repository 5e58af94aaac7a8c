#include "cuda.h"

#if SHUNT_HAVE_CUDA

#include <cuda_runtime.h>
#include <nanobind/nanobind.h>

#include <optional>

namespace shunt::python {

int device_of(const Transport& transport) {
  int device = -1;
  if (transport.capabilities().device_memory && cudaGetDevice(&device) != cudaSuccess) device = -1;
  return device;
}

CurrentDevice::CurrentDevice(int device) noexcept {
  int current = -1;
  if (device < 0 || cudaGetDevice(&current) != cudaSuccess || current == device) return;
  if (cudaSetDevice(device) == cudaSuccess) before_ = current;
}

CurrentDevice::~CurrentDevice() {
  if (before_ >= 0) static_cast<void>(cudaSetDevice(before_));
}

void wait_for_device(int device) noexcept {
  if (device < 0) return;
  std::optional<nanobind::gil_scoped_release> release;
  if (PyGILState_Check() != 0) release.emplace();
  static_cast<void>(cudaDeviceSynchronize());
}

}  // namespace shunt::python

#else

namespace shunt::python {

int device_of(const Transport& /*transport*/) {
  return -1;
}

CurrentDevice::CurrentDevice(int /*device*/) noexcept {}
CurrentDevice::~CurrentDevice() = default;

void wait_for_device(int /*device*/) noexcept {}

}  // namespace shunt::python

#endif

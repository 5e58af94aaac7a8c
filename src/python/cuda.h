#pragma once

#include <shunt/transport/transport.h>

namespace shunt::python {

/// The GPU whose memory `transport` has, as CUDA numbers them; -1 where it has the host's. On the thread that made the
/// transport, right afterwards.
[[nodiscard]] int device_of(const Transport& transport);

/// Makes a GPU the current one of this thread and goes back to the one before. Nothing with -1.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) noexcept;
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  [[maybe_unused]] int before_ = -1;
};

/// Waits, without the GIL, until the current GPU has done what this process gave it. Nothing with -1.
void wait_for_device(int device) noexcept;

}  // namespace shunt::python

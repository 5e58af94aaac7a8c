#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include <nanobind/nanobind.h>

#include "cuda.h"
#include "world.h"

namespace shunt::python {

/// An AllToAll of the library, on the CPU or on GPUs, and whatever keeps it valid. Arrays that show its memory share it.
template <class T>
class Holder : public Dependent {
 public:
  explicit Holder(std::shared_ptr<WorldState> world_in) : world(std::move(world_in)) {}
  ~Holder() override {
    if (impl == nullptr) return;
    if (world->in_own_process()) {
      world->exclusively([this] { let_go(); });
    } else {
      static_cast<void>(impl.release());
    }
  }
  void let_go() noexcept override {
    const CurrentDevice device(world->device());
    wait_for_device(world->device());
    impl.reset();
  }

  [[nodiscard]] T& get() const {
    world->check_usable();
    return *impl;
  }

  std::shared_ptr<WorldState> world;
  std::unique_ptr<T> impl;
  std::atomic<std::int64_t> handed_out{0};  ///< Grows whenever earlier Received end
};

/// Owner of an array that shows memory of `holder`.
template <class T>
[[nodiscard]] nanobind::capsule keep(const std::shared_ptr<Holder<T>>& holder) {
  auto copy = std::make_unique<std::shared_ptr<Holder<T>>>(holder);
  nanobind::capsule owner(
      copy.get(), [](void* pointer) noexcept { delete static_cast<std::shared_ptr<Holder<T>>*>(pointer); });
  static_cast<void>(copy.release());
  return owner;
}

}  // namespace shunt::python

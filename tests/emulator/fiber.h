#pragma once

#include <cstddef>
#include <vector>

namespace shunt::emulator {

/// A stack with a page below it that faults. 256 KiB, touched only as far as it is used.
class FiberStack {
 public:
  FiberStack();
  ~FiberStack();
  FiberStack(const FiberStack&) = delete;
  FiberStack& operator=(const FiberStack&) = delete;
  [[nodiscard]] std::byte* bottom() const noexcept;
  [[nodiscard]] static std::size_t size() noexcept;

 private:
  void* mapping_;
};

/// One flow of control inside the calling thread. It runs while it is resumed and until it suspends itself or its entry
/// returns. Sanitizers are told of every switch.
/// Ownership: borrows the stack. One that never ends is dropped without unwinding: nothing on it may own anything.
class Fiber {
 public:
  using Entry = void (*)(void*);
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Makes `entry(argument)` what the first resume() begins. It must not throw.
  void prepare(FiberStack& stack, Entry entry, void* argument);
  /// Runs the fiber until it suspends or ends.
  void resume();
  /// From inside the fiber: back to whoever resumed it.
  void suspend();
  [[nodiscard]] bool ended() const noexcept { return ended_; }

 private:
  static void begin(Fiber* self);

  FiberStack* stack_ = nullptr;
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  bool ended_ = true;
  void* own_ = nullptr;     ///< Saved state of the fiber, of the form that switch_to() of this processor has
  void* caller_ = nullptr;  ///< The same of whoever resumed it
  // For AddressSanitizer: its frames of either side, and the caller's stack.
  void* own_frames_ = nullptr;
  void* caller_frames_ = nullptr;
  const void* caller_bottom_ = nullptr;
  std::size_t caller_size_ = 0;
};

}  // namespace shunt::emulator

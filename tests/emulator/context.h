#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include <shunt/device/context.h>

#include "machine.h"

namespace shunt::emulator {

/// Elements of a block's shared memory; every access is checked.
template <class T>
class Shared {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 4 == 0,
                "accesses are followed in units of 4 bytes");

 public:
  Shared(Machine& machine, Thread& thread, std::int32_t offset_bytes, std::int32_t count);
  [[nodiscard]] T load(std::int32_t i, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) const;
  void store(std::int32_t i, T value, const char* file = __builtin_FILE(), int line = __builtin_LINE());

 private:
  Machine* machine_;
  Thread* thread_;
  SharedSpan span_;
};

/// The kernel context of one emulated thread. See device::KernelContext.
class Context {
 public:
  Context(Machine& machine, Thread& thread) : machine_(&machine), thread_(&thread) {}

  [[nodiscard]] std::int32_t rank() const { return thread_->block->grid->rank; }
  [[nodiscard]] std::int32_t thread() const { return thread_->index; }
  [[nodiscard]] std::int32_t num_threads() const { return thread_->block->grid->shape.threads; }
  [[nodiscard]] std::int32_t block() const { return thread_->block->index; }
  [[nodiscard]] std::int32_t num_blocks() const { return thread_->block->grid->shape.blocks; }
  [[nodiscard]] std::int32_t lane() const { return thread_->index % device::kWarpSize; }
  [[nodiscard]] std::int32_t warp() const { return thread_->index / device::kWarpSize; }

  void sync_block(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    machine_->barrier(*thread_, {file, line});
  }
  void sync_warp(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    machine_->warp_operation(*thread_, WarpOp::sync, 0, 0, {file, line});
  }
  template <class T>
  T shuffle(T value, std::int32_t lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return operate(WarpOp::shuffle, value, lane, {file, line});
  }
  template <class T>
  T shuffle_xor(T value, std::int32_t mask, const char* file = __builtin_FILE(),
                int line = __builtin_LINE()) {
    return operate(WarpOp::shuffle_xor, value, mask, {file, line});
  }
  template <class T>
  T shuffle_up(T value, std::int32_t distance, const char* file = __builtin_FILE(),
               int line = __builtin_LINE()) {
    return operate(WarpOp::shuffle_up, value, distance, {file, line});
  }
  std::uint32_t ballot(bool value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return static_cast<std::uint32_t>(
        machine_->warp_operation(*thread_, WarpOp::ballot, value ? 1 : 0, 0, {file, line}));
  }
  std::uint32_t match_any(std::int32_t value, const char* file = __builtin_FILE(),
                          int line = __builtin_LINE()) {
    const auto bits = static_cast<std::uint32_t>(value);
    return static_cast<std::uint32_t>(
        machine_->warp_operation(*thread_, WarpOp::match_any, bits, 0, {file, line}));
  }

  template <class T>
  Shared<T> shared(std::int32_t offset_bytes, std::int32_t count) {
    return Shared<T>(*machine_, *thread_, offset_bytes, count);
  }

  device::Word16 load16(const void* at) {
    check_alignment(at, "loads");
    machine_->give_way(*thread_, kSeldom);
    device::Word16 value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  void store16(void* at, const device::Word16& value) {
    check_alignment(at, "stores");
    machine_->give_way(*thread_, kSeldom);
    std::memcpy(at, &value, sizeof value);
  }
  device::Word16 load16_once(const void* at) { return load16(at); }
  void store16_once(void* at, const device::Word16& value) { store16(at, value); }

  // Threads change only where they give way, so plain accesses are atomic here.
  template <class T>
  T load_relaxed(device::Scope /*scope*/, const T* at) {
    machine_->give_way(*thread_, kOften);
    return *at;
  }
  template <class T>
  T load_acquire(device::Scope scope, const T* at) {
    return load_relaxed(scope, at);
  }
  template <class T>
  void store_relaxed(device::Scope /*scope*/, T* at, std::type_identity_t<T> value) {
    machine_->give_way(*thread_, kOften);
    *at = value;
  }
  template <class T>
  void store_release(device::Scope scope, T* at, std::type_identity_t<T> value) {
    store_relaxed(scope, at, value);
  }
  template <class T>
  T fetch_add(device::Scope /*scope*/, T* at, std::type_identity_t<T> value) {
    machine_->give_way(*thread_, kOften);
    return std::exchange(*at, static_cast<T>(*at + value));
  }
  template <class T>
  T compare_exchange(device::Scope /*scope*/, T* at, std::type_identity_t<T> expected,
                     std::type_identity_t<T> desired) {
    machine_->give_way(*thread_, kOften);
    const T old = *at;
    if (old == expected) *at = desired;
    return old;
  }
  void fence(device::Scope /*scope*/) { machine_->give_way(*thread_, kOften); }

  std::uint64_t clock_ns() { return machine_->now_ns(); }
  void pause() { machine_->give_way(*thread_, 1); }

 private:
  static constexpr std::uint32_t kSeldom = 32;
  static constexpr std::uint32_t kOften = 2;

  template <class T>
  T operate(WarpOp op, T value, std::int32_t parameter, Place place) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    bits = machine_->warp_operation(*thread_, op, bits, parameter, place);
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  void check_alignment(const void* at, const char* does) const {
    if (reinterpret_cast<std::uintptr_t>(at) % 16 != 0)
      throw Fault(machine_->name_of(*thread_) + " " + does +
                  " 16 bytes at an address that is no multiple of 16");
  }

  Machine* machine_;
  Thread* thread_;
};

template <class T>
Shared<T>::Shared(Machine& machine, Thread& thread, std::int32_t offset_bytes, std::int32_t count)
    : machine_(&machine), thread_(&thread), span_{offset_bytes, count, sizeof(T)} {}

template <class T>
T Shared<T>::load(std::int32_t i, const char* file, int line) const {
  T value;
  std::memcpy(&value, machine_->access_shared(*thread_, span_, i, false, {file, line}), sizeof value);
  return value;
}

template <class T>
void Shared<T>::store(std::int32_t i, T value, const char* file, int line) {
  std::memcpy(machine_->access_shared(*thread_, span_, i, true, {file, line}), &value, sizeof value);
}

static_assert(device::KernelContext<Context>);

}  // namespace shunt::emulator

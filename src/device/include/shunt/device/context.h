#pragma once

#include <concepts>
#include <cstdint>

#include <shunt/device/word16.h>

namespace shunt::device {

/// Lanes of a warp.
inline constexpr std::int32_t kWarpSize = 32;

/// Whose accesses an atomic operation is ordered with: those of the same GPU, or those of every GPU, NIC and CPU that
/// reaches the memory.
enum class Scope : std::uint8_t { device, system };

/// Blocks, threads of a block and bytes of shared memory of one launch.
struct LaunchShape {
  std::int32_t blocks = 0;
  std::int32_t threads = 0;  ///< A multiple of 32
  std::int32_t shared_bytes = 0;
};

/// What a kernel sees of the machine that runs it. A kernel is a function template over this and names no __shared__, PTX
/// or launch syntax itself, so the same source runs on a GPU (CudaContext) and, for tests, on fibers of the CPU
/// (tests/emulator). Grids and blocks have one dimension.
/// Threads:  sync_block, and the warp operations (sync_warp to match_any), must be reached by all threads of the block,
///           or lanes of the warp, together and from the same place: a divergent one is an error in the emulator and
///           undefined on a GPU.
/// Memory:   shared<T>(offset, count) is `count` elements at `offset` bytes of the block's shared memory, read and written
///           by load(i) and store(i, v); its content is undefined at the start. Global memory, a peer's too, is read and
///           written through plain pointers, and by load16 and store16 (16-byte aligned). The _once forms are hints that
///           the bytes are not used again soon.
/// Ordering: sync_block orders the block's accesses to shared and global memory, sync_warp those of the warp; the other
///           warp operations exchange registers and order nothing. Between blocks and ranks only atomics order: what was written before a store_release (or a
///           fence and a store_relaxed) is seen after a load_acquire that reads its value. A release covers the accesses
///           that sync_block or sync_warp has ordered before it too. fetch_add is acquire and release.
/// Waiting:  a loop that waits for another block or rank calls pause() and compares clock_ns() with a deadline; clock_ns
///           only grows, and is not the clock of another device.
template <class C>
concept KernelContext = requires(C& c, const C& fixed, std::uint32_t* word, std::uint64_t* wide,
                                 void* bytes) {
  { fixed.thread() } -> std::same_as<std::int32_t>;       // of the block
  { fixed.num_threads() } -> std::same_as<std::int32_t>;  // of each block
  { fixed.block() } -> std::same_as<std::int32_t>;
  { fixed.num_blocks() } -> std::same_as<std::int32_t>;
  { fixed.lane() } -> std::same_as<std::int32_t>;
  { fixed.warp() } -> std::same_as<std::int32_t>;  // of the block
  c.sync_block();
  c.sync_warp();
  { c.shuffle(1.0F, std::int32_t{0}) } -> std::same_as<float>;  // the value of lane `1`
  { c.shuffle_xor(std::int32_t{1}, std::int32_t{1}) } -> std::same_as<std::int32_t>;
  {
    c.shuffle_up(std::int32_t{1}, std::int32_t{1})
    } -> std::same_as<std::int32_t>;  // own value where none is below
  { c.ballot(true) } -> std::same_as<std::uint32_t>;
  { c.match_any(std::int32_t{1}) } -> std::same_as<std::uint32_t>;  // lanes with the same value
  { c.template shared<std::int32_t>(0, 1).load(0) } -> std::same_as<std::int32_t>;
  c.template shared<std::int32_t>(0, 1).store(0, std::int32_t{1});
  { c.load16(bytes) } -> std::same_as<Word16>;
  { c.load16_once(bytes) } -> std::same_as<Word16>;
  c.store16(bytes, Word16{});
  c.store16_once(bytes, Word16{});
  { c.load_relaxed(Scope::system, wide) } -> std::same_as<std::uint64_t>;
  { c.load_acquire(Scope::system, wide) } -> std::same_as<std::uint64_t>;
  c.store_relaxed(Scope::system, wide, std::uint64_t{1});
  c.store_release(Scope::system, wide, std::uint64_t{1});
  { c.fetch_add(Scope::device, word, std::uint32_t{1}) } -> std::same_as<std::uint32_t>;
  { c.fetch_add(Scope::system, wide, std::uint64_t{1}) } -> std::same_as<std::uint64_t>;
  // Value that was there; `desired` is stored where that equals `expected`.
  {
    c.compare_exchange(Scope::system, wide, std::uint64_t{0}, std::uint64_t{1})
    } -> std::same_as<std::uint64_t>;
  c.fence(Scope::system);
  { c.clock_ns() } -> std::same_as<std::uint64_t>;
  c.pause();
};

}  // namespace shunt::device

#pragma once

// Kernels that use every operation of the context once, for the emulator and for a GPU alike.
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/convert.h>
#include <shunt/device/qualifiers.h>

namespace shunt::test {

using device::Scope;

/// Warp operations and shared memory: each of `out` is [blocks * threads].
struct WarpOperations {
  static constexpr const char* kName = "warp_operations";
  static constexpr std::int32_t kThreads = 64;
  static constexpr std::int32_t kSharedBytes = kThreads * 4;
  struct Args {
    std::int32_t* shuffle;
    float* shuffle_xor;
    std::int32_t* shuffle_up;
    std::uint32_t* ballot;
    std::uint32_t* match_any;
    std::int32_t* reversed;
  };
  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const std::int32_t i = ctx.block() * ctx.num_threads() + ctx.thread();
    args.shuffle[i] = ctx.shuffle(100 + ctx.lane(), (ctx.lane() + 5) % 32);
    args.shuffle_xor[i] = ctx.shuffle_xor(static_cast<float>(ctx.thread()), 3);
    args.shuffle_up[i] = ctx.shuffle_up(ctx.lane(), 2);
    args.ballot[i] = ctx.ballot(ctx.lane() % 3 == 0 || ctx.warp() == 1);
    args.match_any[i] = ctx.match_any(ctx.lane() / 10);
    auto shared = ctx.template shared<std::int32_t>(0, kThreads);
    shared.store(ctx.thread(), ctx.block() * 1000 + ctx.thread());
    ctx.sync_block();
    args.reversed[i] = shared.load(kThreads - 1 - ctx.thread());
    ctx.sync_warp();
  }
};

/// Counters that every thread of every block adds to, the second one under a lock of the block's first thread.
struct Counters {
  static constexpr const char* kName = "counters";
  static constexpr std::int32_t kThreads = 64;
  static constexpr std::int32_t kSharedBytes = 0;
  struct Args {
    std::uint64_t* wide;
    std::uint32_t* narrow;
    std::uint64_t* lock;
    std::uint64_t* locked;
  };
  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    ctx.fetch_add(Scope::device, args.wide, 1);
    ctx.fetch_add(Scope::system, args.wide, 2);
    ctx.fetch_add(Scope::system, args.narrow, 1);
    ctx.fetch_add(Scope::device, args.narrow, 1);
    if (ctx.thread() != 0) return;
    while (ctx.compare_exchange(Scope::device, args.lock, 0, 1) != 0) ctx.pause();
    const std::uint64_t old = ctx.load_relaxed(Scope::system, args.locked);
    ctx.store_relaxed(Scope::device, args.locked, old + 1);
    ctx.fence(Scope::device);
    ctx.fence(Scope::system);
    if (ctx.compare_exchange(Scope::system, args.lock, 1, 1) == 1)
      ctx.store_release(Scope::device, args.lock, 0);
  }
};

/// Blocks as ranks: lane p of block r writes 16 bytes to the mailbox of block p and raises a flag there, then waits for
/// its own mailbox, at most `deadline_ns`. `out` [blocks, blocks]: what block r got from p, or -1. Block `silent` sends
/// nothing. Two sets of flags, 32 and 64 bits, one in each scope.
struct Exchange {
  static constexpr const char* kName = "exchange";
  static constexpr std::int32_t kThreads = 32;
  static constexpr std::int32_t kSharedBytes = 0;
  struct Args {
    device::Word16* mail;         ///< [receiver, sender]
    std::uint64_t* wide_flags;    ///< likewise
    std::uint32_t* narrow_flags;  ///< likewise
    std::int64_t* out;            ///< likewise
    std::int32_t silent;
    std::uint64_t deadline_ns;
  };
  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const std::int32_t ranks = ctx.num_blocks();
    const std::int32_t me = ctx.block();
    const std::int32_t peer = ctx.lane();
    if (peer >= ranks) return;
    const std::int32_t there = peer * ranks + me;
    const std::int32_t here = me * ranks + peer;
    if (me != args.silent) {
      const auto value = static_cast<std::uint32_t>(100 * me + peer);
      if (peer % 2 == 0)
        ctx.store16(&args.mail[there], {{value, 0, 0, value}});
      else
        ctx.store16_once(&args.mail[there], {{value, 0, 0, value}});
      ctx.store_release(Scope::system, &args.wide_flags[there], 1);
      ctx.store_release(Scope::device, &args.narrow_flags[there], 1);
      ctx.store_relaxed(Scope::system, &args.narrow_flags[there], 2);
    }
    const std::uint64_t start = ctx.clock_ns();
    bool there_yet = false;
    while (!there_yet && ctx.clock_ns() - start < args.deadline_ns) {
      ctx.pause();
      there_yet = ctx.load_acquire(Scope::system, &args.wide_flags[here]) == 1 &&
                  ctx.load_acquire(Scope::device, &args.wide_flags[here]) == 1 &&
                  ctx.load_acquire(Scope::system, &args.narrow_flags[here]) != 0 &&
                  ctx.load_relaxed(Scope::device, &args.narrow_flags[here]) == 2;
    }
    const device::Word16 got =
        peer % 2 == 0 ? ctx.load16(&args.mail[here]) : ctx.load16_once(&args.mail[here]);
    args.out[here] = there_yet ? static_cast<std::int64_t>(got.word[0]) * 1000 + got.word[3] : -1;
  }
};

/// Conversions of `count` floats, and two operations on each with its neighbour.
struct Conversions {
  static constexpr const char* kName = "conversions";
  static constexpr std::int32_t kThreads = 128;
  static constexpr std::int32_t kSharedBytes = 0;
  struct Args {
    const float* values;
    std::int32_t count;
    std::uint16_t* bf16;
    std::uint16_t* f16;
    std::uint16_t* e4m3;  ///< Of the value and, in the upper byte, its negative
    std::uint16_t* e5m2;
    float* widened;  ///< Of the upper half of the value's bits, as f16
    float* quotient;
    float* fused;
  };
  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    for (std::int32_t i = ctx.block() * ctx.num_threads() + ctx.thread(); i < args.count;
         i += ctx.num_blocks() * ctx.num_threads()) {
      const float value = args.values[i];
      const float next = args.values[i + 1 < args.count ? i + 1 : 0];
      args.bf16[i] = device::f32_to_bf16(value);
      args.f16[i] = device::f32_to_f16(value);
      args.e4m3[i] = device::f32_to_f8e4m3_pair(value, -value);
      args.e5m2[i] = device::f32_to_f8e5m2_pair(value, -value);
      args.widened[i] = device::f16_to_f32(static_cast<std::uint16_t>(device::bits_of(value) >> 16));
      args.quotient[i] = device::divide(value, next);
      args.fused[i] = device::fma(value, next, value);
    }
  }
};

}  // namespace shunt::test

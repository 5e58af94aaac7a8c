#pragma once

// What the kernels of the step between ranks do alike: the last block of a grid, waiting for peers, giving up.
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>

#include "frame.h"
#include "net.h"
#include "pack/cuda/plan_kernels.h"

namespace shunt::cuda::detail {

/// All threads of the block: whether every other block of the grid has come here too. What they wrote before is visible
/// then, to the block and through a signal that it raises also to peers. `offset`: 4 bytes of shared memory.
template <class Context>
SHUNT_DEVICE bool is_last_block(Context& ctx, State& state, std::int32_t offset) {
  auto last = ctx.template shared<std::int32_t>(offset, 1);
  ctx.sync_block();
  if (ctx.thread() == 0) {
    ctx.fence(device::Scope::system);
    const std::uint32_t before = ctx.fetch_add(device::Scope::device, &state.blocks_done, 1U);
    const bool is_last = before + 1 == static_cast<std::uint32_t>(ctx.num_blocks());
    if (is_last) {
      ctx.store_relaxed(device::Scope::device, &state.blocks_done, 0U);
      ctx.fence(device::Scope::system);
    }
    last.store(0, is_last ? 1 : 0);
  }
  ctx.sync_block();
  return last.load(0) != 0;
}

/// Writes what was found for the host to `to`, unless it has not looked at what is there yet. One thread.
template <class Context>
SHUNT_DEVICE void report(Context& ctx, const Frame& frame, Finding& to, Trouble trouble, std::int32_t peer,
                         std::int64_t a, std::int64_t b, bool in_combine) {
  if (ctx.load_relaxed(device::Scope::system, &to.trouble) != 0) return;
  to.peer = peer;
  to.epoch = frame.state().epoch;
  to.a = a;
  to.b = b;
  to.in_combine = in_combine ? 1 : 0;
  ctx.store_release(device::Scope::system, &to.trouble, static_cast<std::uint32_t>(trouble));
}

/// Numbers that no peer has.
inline constexpr std::int32_t kNobody = 0x7fffffff;

/// Tells every live peer on whom this rank gave up. All threads of the block.
template <class Net, class Context>
SHUNT_DEVICE void accuse(Context& ctx, const Frame& frame, const Net& net, std::int32_t whom) {
  const std::int64_t to = frame.at.accusations_at + std::int64_t{16} * frame.rank;
  const std::int32_t signal = frame.signal(Signal::accused, frame.rank);
  if constexpr (Net::kLoadStore) {
    for (std::int32_t peer = ctx.thread(); peer < frame.num_ranks; peer += ctx.num_threads()) {
      if (peer == frame.rank || !frame.lives(peer)) continue;
      *reinterpret_cast<std::int64_t*>(net.peer(peer) + to) = whom;
      net.raise(ctx, peer, signal, 1);
    }
  } else {
    if (ctx.thread() == 0) {
      *frame.own<std::int64_t>(frame.at.out_accusation_at) = whom;
      ctx.fence(device::Scope::system);
    }
    ctx.sync_block();
    for (std::int32_t peer = ctx.warp(); peer < frame.num_ranks; peer += ctx.num_threads() / kWarpSize)
      if (peer != frame.rank && frame.lives(peer))
        net.put(ctx, peer, to, frame.at.out_accusation_at, 8, signal);
  }
}

/// Ends the object: reports, and tells the peers that `accused` is at fault, which need not be the `peer` of the report. All
/// threads of the block.
template <class Net, class Context>
SHUNT_DEVICE void give_up(Context& ctx, const Frame& frame, const Net& net, std::int32_t accused,
                          Trouble trouble, std::int32_t peer, std::int64_t a, std::int64_t b,
                          bool in_combine) {
  if (ctx.thread() == 0) {
    frame.state().dead = 1;
    report(ctx, frame, frame.status->fatal, trouble, peer, a, b, in_combine);
  }
  accuse(ctx, frame, net, accused);
}

/// Waits until every live peer's signal of this kind is at least `wanted(peer)`; gives up at the deadline, counted from
/// `begin`, when the kernel began to wait for anything; or when a peer that is waited for has given up. All threads of the block; one block. Shared memory: 4 bytes for each warp at offset 0.
/// Returns whether all came, the same for all threads.
template <class Net, class Context, class Wanted>
SHUNT_DEVICE bool await_all(Context& ctx, const Frame& frame, const Net& net, Signal kind, bool in_combine,
                            std::uint64_t begin, const Wanted& wanted) {
  State& state = frame.state();
  std::int32_t found = kNobody;  // 2 * peer, + 1 where the peer has given up itself
  for (std::int32_t peer = ctx.thread(); peer < frame.num_ranks; peer += ctx.num_threads()) {
    if (!frame.lives(peer)) continue;
    const std::int32_t signal = frame.signal(kind, peer);
    const std::uint64_t value = wanted(peer);
    while (found == kNobody && static_cast<std::int64_t>(net.load(ctx, signal) - value) < 0) {
      if (net.load(ctx, frame.signal(Signal::accused, peer)) != 0) {
        // It may have sent what is waited for before it gave up on somebody, whom this rank will find too.
        if (static_cast<std::int64_t>(net.load(ctx, signal) - value) < 0) found = 2 * peer + 1;
        break;
      }
      if (ctx.clock_ns() - begin > frame.deadline_ns) found = 2 * peer;
      if (ctx.load_relaxed(device::Scope::device, &state.given_up) != 0) break;
      ctx.pause();
    }
    if (found == kNobody) continue;
    ctx.store_relaxed(device::Scope::device, &state.given_up, 1U);
    break;
  }
  found = ScanExperts::reduce(ctx, found, 0, ScanExperts::Min{});
  if (found == kNobody) {
    ctx.sync_block();  // all have read the result before the memory is used again
    return true;
  }
  const std::int32_t waited_for = found / 2;
  if (found % 2 == 0) {
    give_up(ctx, frame, net, waited_for, Trouble::timeout, waited_for, 0, 0, in_combine);
  } else {
    const auto whom = static_cast<std::int32_t>(
        *frame.own<std::int64_t>(frame.at.accusations_at + std::int64_t{16} * waited_for));
    give_up(ctx, frame, net, whom, Trouble::accused, whom, waited_for, 0, in_combine);
  }
  return false;
}

/// The number of the step, for every peer.
struct ThisStep {
  std::uint64_t epoch;
  SHUNT_DEVICE std::uint64_t operator()(std::int32_t /*peer*/) const { return epoch; }
};

/// The scales of a token, as they are.
template <class Context>
SHUNT_DEVICE void copy_scales(Context& ctx, const Frame& f, const std::byte* from, std::byte* to) {
  if (f.scale == ScaleType::f32) {
    for (std::int64_t i = ctx.lane(); i < f.at.row_scale_bytes / 4; i += kWarpSize)
      reinterpret_cast<std::uint32_t*>(to)[i] = reinterpret_cast<const std::uint32_t*>(from)[i];
    return;
  }
  for (std::int64_t i = ctx.lane(); i < f.at.row_scale_bytes; i += kWarpSize) to[i] = from[i];
}

}  // namespace shunt::cuda::detail

#pragma once

// combine: results to the ranks of their tokens, waiting for every owner's, and the end of a step with a mask. The sum is
// that of pack.
#include <cstddef>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>
#include <shunt/device/tasks.h>

#include "block.h"
#include "frame.h"
#include "net.h"
#include "pack/cuda/move_kernels.h"
#include "receive_kernels.h"

namespace shunt::cuda::detail {

template <class Net>
struct ReturnArgs {
  Frame frame;
  Net net;
  DeviceRows results;
};

SHUNT_DEVICE std::int64_t return_slot(const Frame& f, const Arrival& arrival) {
  return f.at.returns_at + arrival.selection * f.at.result_stride;
}

/// Results to every member of their token's group, stored.
template <std::int32_t Bytes>
struct ReturnRows {
  static constexpr const char* kName = "return_rows";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kSharedBytes = 4;
  using Args = ReturnArgs<LoadStoreNet>;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    State& state = f.state();
    if (state.dead != 0) return;
    const std::int64_t parts = RowPart<Bytes>::parts_of(f.at.result_bytes);
    const std::int64_t tasks = state.num_rows * parts;
    const auto* arrivals = f.own<const Arrival>(f.at.arrivals_at);
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t i = task / parts;
      const Arrival arrival = arrivals[i];
      RowPart<Bytes> data;
      data.load(ctx, row_of(args.results, arrival.row), f.at.result_bytes, task - i * parts);
      const std::int32_t first = arrival.source / f.group_size * f.group_size;
      for (std::int32_t to = first; to < first + f.group_size; ++to)
        if (f.lives(to)) data.store(ctx, args.net.peer(to) + return_slot(f, arrival), f.at.result_bytes);
    }
    if (!is_last_block(ctx, state, 0)) return;
    for (std::int32_t to = ctx.thread(); to < f.num_ranks; to += ctx.num_threads()) {
      if (!f.lives(to)) continue;
      auto* header = reinterpret_cast<ReturnHeader*>(args.net.peer(to) + f.at.return_headers_at) + f.rank;
      header->num_rows = f.own<std::int32_t>(f.at.group_rows_at)[to / f.group_size];
      args.net.raise(ctx, to, f.signal(Signal::returned, f.rank), state.epoch);
    }
  }
};

struct StageArgs {
  Frame frame;
  DeviceRows results;
  bool in_place = false;  ///< They lie where the net puts from: only the headers are written
};

/// Results to where the net puts from, and the headers.
template <std::int32_t Bytes>
struct StageResults {
  static constexpr const char* kName = "stage_results";
  static constexpr std::int32_t kThreads = 256;
  using Args = StageArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    const State& state = f.state();
    if (ctx.block() == 0)
      for (std::int32_t to = ctx.thread(); to < f.num_ranks; to += ctx.num_threads())
        f.own<ReturnHeader>(f.at.out_headers_at)[to].num_rows =
            f.own<std::int32_t>(f.at.group_rows_at)[to / f.group_size];
    const std::int64_t parts = RowPart<Bytes>::parts_of(f.at.result_bytes);
    const std::int64_t tasks = args.in_place || state.dead != 0 ? 0 : state.num_rows * parts;
    const auto* arrivals = f.own<const Arrival>(f.at.arrivals_at);
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t i = task / parts;
      const std::int64_t row = arrivals[i].row;
      RowPart<Bytes> data;
      data.load(ctx, row_of(args.results, row), f.at.result_bytes, task - i * parts);
      data.store(ctx, f.own<std::byte>(f.at.output_at + row * f.at.result_stride), f.at.result_bytes);
    }
  }
};

/// Results and headers, through a net.
template <class Net>
struct PutResults {
  static constexpr const char* kName = "put_results";
  static constexpr std::int32_t kThreads = 256;
  struct Args {
    Frame frame;
    Net net;
  };

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    const State& state = f.state();
    if (state.dead != 0) return;
    constexpr auto kHeader = static_cast<std::int64_t>(sizeof(ReturnHeader));
    for (const std::int64_t peer : device::tasks_of_warp(ctx, f.num_ranks)) {
      const auto to = static_cast<std::int32_t>(peer);
      if (f.lives(to))
        args.net.put(ctx, to, f.at.return_headers_at + f.rank * kHeader, f.at.out_headers_at + to * kHeader,
                     kHeader, f.signal(Signal::returned, f.rank));
    }
    const auto* arrivals = f.own<const Arrival>(f.at.arrivals_at);
    for (const std::int64_t task : device::tasks_of_warp(ctx, std::int64_t{state.num_rows} * f.group_size)) {
      const std::int64_t i = task / f.group_size;
      const Arrival arrival = arrivals[i];
      const std::int32_t to =
          arrival.source / f.group_size * f.group_size + static_cast<std::int32_t>(task - i * f.group_size);
      if (f.lives(to))
        args.net.put(ctx, to, return_slot(f, arrival), f.at.output_at + arrival.row * f.at.result_stride,
                     f.at.result_bytes, f.signal(Signal::row_messages, f.rank));
    }
  }
};

/// One block: waits for every owner's results. The only kernel of combine that waits, but for the end of a step with a
/// mask.
template <class Net>
struct Collect {
  static constexpr const char* kName = "collect";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kSharedBytes = kThreads / kWarpSize * 4;
  using Args = ArriveArgs<Net>;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    State& state = f.state();
    const std::uint64_t begin = ctx.clock_ns();
    const bool dead = state.dead != 0;
    const bool all = !dead &&
                     await_all(ctx, f, args.net, Signal::returned, true, begin, ThisStep{state.epoch}) &&
                     await_rows(ctx, args, begin) && (state.is_void != 0 || counts_agree(ctx, args));
    ctx.sync_block();
    if (f.group_size > 1)
      for (std::int32_t owner = ctx.thread(); owner < f.num_ranks; owner += ctx.num_threads())
        f.own<std::int32_t>(f.at.selected_at)[owner] = 0;
    if (ctx.thread() == 0) state.combine_tokens = all && state.is_void == 0 ? state.tokens : 0;
  }

  static SHUNT_DEVICE std::int64_t rows_from(const Frame& f, std::int32_t owner) {
    return f.own<const ReturnHeader>(f.at.return_headers_at)[owner].num_rows;
  }

  template <class Context>
  static SHUNT_DEVICE bool await_rows(Context& ctx, const Args& args, std::uint64_t begin) {
    if constexpr (Net::kLoadStore) {
      return true;
    } else {
      const Frame& f = args.frame;
      auto* expected = f.own<std::uint64_t>(f.at.expected_at) + f.num_ranks;
      for (std::int32_t owner = ctx.thread(); owner < f.num_ranks; owner += ctx.num_threads())
        if (f.lives(owner)) expected[owner] += static_cast<std::uint64_t>(rows_from(f, owner));
      ctx.sync_block();
      return await_all(ctx, f, args.net, Signal::row_messages, true, begin, MessagesSoFar{expected});
    }
  }

  /// With groups: whether as many results came as this rank's tokens ask for. They do not where the members of the group
  /// brought different tokens.
  template <class Context>
  static SHUNT_DEVICE bool counts_agree(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    if (f.group_size == 1) return true;
    const auto* selected = f.own<const std::int32_t>(f.at.selected_at);
    std::int32_t wrong = kNobody;
    for (std::int32_t owner = ctx.thread(); owner < f.num_ranks; owner += ctx.num_threads())
      if (f.lives(owner) && rows_from(f, owner) != selected[owner] && owner < wrong) wrong = owner;
    wrong = ScanExperts::reduce(ctx, wrong, 0, ScanExperts::Min{});
    if (wrong == kNobody) return true;
    // The owner sent what it was told to: who cannot go on is this rank.
    give_up(ctx, f, args.net, f.rank, Trouble::other_replicas, wrong, selected[wrong], rows_from(f, wrong),
            true);
    return false;
  }
};

/// One block, with a mask only: no rank counts a step as complete before every live rank has everything of it, so that
/// after a loss all survivors repeat the same one.
template <class Net>
struct Commit {
  static constexpr const char* kName = "commit";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kSharedBytes = kThreads / kWarpSize * 4;
  using Args = ArriveArgs<Net>;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    State& state = f.state();
    if (state.dead != 0) return;
    const std::int32_t signal = f.signal(Signal::committed, f.rank);
    if constexpr (Net::kLoadStore) {
      for (std::int32_t peer = ctx.thread(); peer < f.num_ranks; peer += ctx.num_threads())
        if (f.lives(peer)) args.net.raise(ctx, peer, signal, state.epoch);
    } else {
      // The word that travels with the signal is nobody's: it lies behind this rank's accusation at the peer.
      for (std::int32_t peer = ctx.warp(); peer < f.num_ranks; peer += kThreads / kWarpSize)
        if (f.lives(peer))
          args.net.put(ctx, peer, f.at.accusations_at + std::int64_t{16} * f.rank + 8,
                       f.at.out_accusation_at + 8, 8, signal);
    }
    if (!await_all(ctx, f, args.net, Signal::committed, true, ctx.clock_ns(), ThisStep{state.epoch})) return;
    if (ctx.thread() == 0) f.status->completed = state.epoch;
  }
};

}  // namespace shunt::cuda::detail

#pragma once

// From expert ids to rows. Selections (t * K + k) are cut into units, each walked by one warp in order, so a row depends
// on the ids alone: unit u's first row of an expert follows the rows of the units before it.
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>
#include <shunt/device/tasks.h>
#include <shunt/pack/cuda.h>

namespace shunt::cuda::detail {

using device::kWarpSize;

/// Experts that a warp counts in one pass over its unit, in shared memory; with more experts the pass is repeated.
inline constexpr std::int32_t kTile = 1024;

/// What all kernels of a plan get.
struct PlanArgs {
  PlanInput input;
  Plan plan;
  std::int32_t unit = kWarpSize;  ///< Selections of a unit, a multiple of the warp
  std::int32_t num_units = 0;
  std::int32_t tile = 0;                  ///< min(E, kTile)
  std::int32_t* per_unit = nullptr;       ///< [num_units, E] rows of each unit, then of all units before it
  std::int32_t* first_invalid = nullptr;  ///< [num_units] -1: none
  std::uint32_t* blocks_done = nullptr;   ///< Of ScanUnits
};

/// Live selections: the host's bound or what the device says.
SHUNT_DEVICE std::int32_t live_selections(const Selections& s) {
  const std::int64_t live = s.live_tokens == nullptr ? s.num_tokens : *s.live_tokens;
  const std::int64_t tokens = live < 0 ? 0 : live < s.num_tokens ? live : s.num_tokens;
  return static_cast<std::int32_t>(tokens * s.top_k);
}

/// -1: skipped; E: outside of what is allowed.
SHUNT_DEVICE std::int32_t expert_of(const PlanInput& input, std::int32_t selection) {
  const Selections& s = input.selections;
  const std::int64_t id = s.wide ? static_cast<const std::int64_t*>(s.ids)[selection]
                                 : static_cast<const std::int32_t*>(s.ids)[selection];
  return id >= -1 && id < input.num_experts ? static_cast<std::int32_t>(id) : input.num_experts;
}

SHUNT_DEVICE std::int32_t count_bits(std::uint32_t mask) {
#if defined(__CUDA_ARCH__)
  return __popc(mask);
#else
  return __builtin_popcount(mask);
#endif
}

SHUNT_DEVICE std::uint32_t lanes_below(std::int32_t lane) {
  return (1U << static_cast<std::uint32_t>(lane)) - 1;
}

/// Rows of each (unit, expert); where ids are out of range; marks every row as padding.
struct CountUnits {
  static constexpr const char* kName = "count_units";
  static constexpr std::int32_t kThreads = 128;
  using Args = PlanArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const std::int32_t lane = ctx.lane();
    if (ctx.block() == 0 && ctx.thread() == 0) *args.blocks_done = 0;
    if (args.plan.selections != nullptr) {
      for (const std::int64_t row : device::items_of_thread(ctx, args.input.max_rows))
        args.plan.selections[row] = -1;
    }
    auto tile = ctx.template shared<std::int32_t>(ctx.warp() * args.tile * 4, args.tile);
    const std::int32_t experts = args.input.num_experts;
    const std::int32_t live = live_selections(args.input.selections);
    for (const std::int64_t task : device::tasks_of_warp(ctx, args.num_units)) {
      const auto unit = static_cast<std::int32_t>(task);
      const std::int32_t begin = unit * args.unit;
      const std::int32_t end = live - begin < args.unit ? live : begin + args.unit;
      std::int32_t invalid = live;
      for (std::int32_t base = 0; base < experts; base += args.tile) {
        for (std::int32_t i = lane; i < args.tile; i += kWarpSize) tile.store(i, 0);
        ctx.sync_warp();
        for (std::int32_t first = begin; first < end; first += kWarpSize) {
          const std::int32_t selection = first + lane;
          const std::int32_t expert = selection < end ? expert_of(args.input, selection) : -1;
          if (expert == experts && selection < invalid) invalid = selection;
          const std::int32_t slot = expert - base;
          const bool counted = expert < experts && slot >= 0 && slot < args.tile;
          const std::uint32_t alike = ctx.match_any(counted ? slot : -1);
          if (counted && (alike & lanes_below(lane)) == 0)
            tile.store(slot, tile.load(slot) + count_bits(alike));
          ctx.sync_warp();
        }
        for (std::int32_t i = lane; i < args.tile && base + i < experts; i += kWarpSize)
          args.per_unit[static_cast<std::int64_t>(unit) * experts + base + i] = tile.load(i);
      }
      for (std::int32_t distance = kWarpSize / 2; distance > 0; distance /= 2) {
        const std::int32_t other = ctx.shuffle_xor(invalid, distance);
        if (other < invalid) invalid = other;
      }
      if (lane == 0) args.first_invalid[unit] = invalid < live ? invalid : -1;
    }
  }
};

/// Where each expert's rows start, from counts; cuts counts to what has room; the status. A part of a kernel, by one block
/// and with its shared memory from offset 0.
struct ScanExperts {
  static constexpr std::int32_t kThreads = 512;
  using Args = PlanArgs;

  /// Combines one value of every thread with `op`; every thread gets the result.
  template <class Context, class Op>
  static SHUNT_DEVICE std::int32_t reduce(Context& ctx, std::int32_t value, std::int32_t offset,
                                          const Op& op) {
    const std::int32_t warps = ctx.num_threads() / kWarpSize;
    auto parts = ctx.template shared<std::int32_t>(offset, warps);
    for (std::int32_t distance = kWarpSize / 2; distance > 0; distance /= 2)
      value = op(value, ctx.shuffle_xor(value, distance));
    if (ctx.lane() == 0) parts.store(ctx.warp(), value);
    ctx.sync_block();
    value = parts.load(0);
    for (std::int32_t w = 1; w < warps; ++w) value = op(value, parts.load(w));
    return value;
  }
  struct Sum {
    SHUNT_DEVICE std::int32_t operator()(std::int32_t a, std::int32_t b) const { return a + b; }
  };
  struct Max {
    SHUNT_DEVICE std::int32_t operator()(std::int32_t a, std::int32_t b) const { return a > b ? a : b; }
  };
  struct Min {
    SHUNT_DEVICE std::int32_t operator()(std::int32_t a, std::int32_t b) const { return a < b ? a : b; }
  };

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    constexpr std::int32_t kNone = 0x7fffffff;
    const PlanInput& input = args.input;
    const std::int32_t warps = ctx.num_threads() / kWarpSize;
    const std::int32_t part_bytes = warps * 4;
    const bool padded = input.rows_per_expert > 0;
    const auto alignment = static_cast<std::int32_t>(input.alignment);
    auto sums = ctx.template shared<std::int32_t>(0, warps);
    std::int32_t carry = 0;  // rows of the experts before this round's
    std::int32_t dropped = 0;
    std::int32_t kept_rows = 0;
    std::int32_t largest = 0;
    for (std::int32_t base = 0; base < input.num_experts; base += ctx.num_threads()) {
      const std::int32_t expert = base + ctx.thread();
      const bool mine = expert < input.num_experts;
      const std::int32_t count = mine ? args.plan.counts[expert] : 0;
      std::int32_t rows = mine ? (count + alignment - 1) / alignment * alignment : 0;
      if (padded) rows = mine ? static_cast<std::int32_t>(input.rows_per_expert) : 0;
      std::int32_t inclusive = rows;
      for (std::int32_t distance = 1; distance < kWarpSize; distance *= 2) {
        const std::int32_t below = ctx.shuffle_up(inclusive, distance);
        if (ctx.lane() >= distance) inclusive += below;
      }
      if (ctx.lane() == kWarpSize - 1) sums.store(ctx.warp(), inclusive);
      ctx.sync_block();
      std::int32_t start = carry + inclusive - rows;
      for (std::int32_t w = 0; w < warps; ++w) {
        const std::int32_t of_warp = sums.load(w);
        if (w < ctx.warp()) start += of_warp;
        carry += of_warp;
      }
      ctx.sync_block();  // the sums are read before the next round writes them
      if (!mine) continue;
      const std::int64_t room = padded ? input.rows_per_expert : input.max_rows - start;
      const auto kept = static_cast<std::int32_t>(room < 0 ? 0 : room < count ? room : count);
      args.plan.starts[expert] = start;
      args.plan.counts[expert] = kept;
      dropped += count - kept;
      kept_rows += kept;
      if (count > largest) largest = count;
    }
    std::int32_t invalid = kNone;
    for (std::int32_t unit = ctx.thread(); unit < args.num_units; unit += ctx.num_threads())
      if (args.first_invalid[unit] >= 0 && args.first_invalid[unit] < invalid)
        invalid = args.first_invalid[unit];
    dropped = reduce(ctx, dropped, 0, Sum{});
    kept_rows = reduce(ctx, kept_rows, part_bytes, Sum{});
    largest = reduce(ctx, largest, 2 * part_bytes, Max{});
    invalid = reduce(ctx, invalid, 3 * part_bytes, Min{});
    if (ctx.thread() != 0) return;
    args.plan.starts[input.num_experts] = carry;
    PlanStatus& status = *args.plan.status;
    status.first_invalid = invalid == kNone ? -1 : invalid;
    status.dropped = dropped;
    status.rows_needed = padded ? largest : carry;
    status.num_rows = kept_rows;
  }
};

/// per_unit becomes the rows of all units before; counts those of all. A block has 32 experts, one for each lane, and each
/// of its warps a run of units. The block that ends last does ScanExperts, which spares a launch.
struct ScanUnits {
  static constexpr const char* kName = "scan_units";
  static constexpr std::int32_t kThreads = ScanExperts::kThreads;
  static constexpr std::int32_t kSharedBytes = kThreads * 4 + 4;
  using Args = PlanArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const std::int32_t lane = ctx.lane();
    const std::int32_t warp = ctx.warp();
    const std::int32_t warps = ctx.num_threads() / kWarpSize;
    const std::int32_t experts = args.input.num_experts;
    auto sums = ctx.template shared<std::int32_t>(0, warps * kWarpSize);
    const std::int32_t run_length = (args.num_units + warps - 1) / warps;
    const std::int32_t begin = warp * run_length;
    const std::int32_t end = begin + run_length < args.num_units ? begin + run_length : args.num_units;
    for (std::int32_t base = ctx.block() * kWarpSize; base < experts; base += ctx.num_blocks() * kWarpSize) {
      const bool mine = base + lane < experts;
      std::int32_t* column = args.per_unit + base + lane;
      std::int32_t sum = 0;
      if (mine)
        for (std::int32_t unit = begin; unit < end; ++unit)
          sum += column[static_cast<std::int64_t>(unit) * experts];
      sums.store(warp * kWarpSize + lane, sum);
      ctx.sync_block();
      std::int32_t before = 0;
      std::int32_t total = 0;
      for (std::int32_t w = 0; w < warps; ++w) {
        const std::int32_t of_warp = sums.load(w * kWarpSize + lane);
        if (w < warp) before += of_warp;
        total += of_warp;
      }
      if (mine) {
        for (std::int32_t unit = begin; unit < end; ++unit) {
          std::int32_t& cell = column[static_cast<std::int64_t>(unit) * experts];
          const std::int32_t rows = cell;
          cell = before;
          before += rows;
        }
        if (warp == 0) args.plan.counts[base + lane] = total;
      }
      ctx.sync_block();  // the sums are read before the next round writes them
    }
    if (is_last(ctx, args)) ScanExperts::run(ctx, args);
  }

 private:
  /// All threads of the block: whether all other blocks have written their counts, which are visible then.
  template <class Context>
  static SHUNT_DEVICE bool is_last(Context& ctx, const Args& args) {
    auto last = ctx.template shared<std::int32_t>(kThreads * 4, 1);
    ctx.sync_block();
    if (ctx.thread() == 0) {
      ctx.fence(device::Scope::device);
      const std::uint32_t before = ctx.fetch_add(device::Scope::device, args.blocks_done, 1U);
      ctx.fence(device::Scope::device);
      last.store(0, before + 1 == static_cast<std::uint32_t>(ctx.num_blocks()) ? 1 : 0);
    }
    ctx.sync_block();
    return last.load(0) != 0;
  }
};

/// The row of every selection.
struct PlaceUnits {
  static constexpr const char* kName = "place_units";
  static constexpr std::int32_t kThreads = 128;
  using Args = PlanArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const std::int32_t lane = ctx.lane();
    auto tile = ctx.template shared<std::int32_t>(ctx.warp() * args.tile * 4, args.tile);
    const std::int32_t experts = args.input.num_experts;
    const std::int32_t live = live_selections(args.input.selections);
    for (const std::int64_t task : device::tasks_of_warp(ctx, args.num_units)) {
      const auto unit = static_cast<std::int32_t>(task);
      const std::int32_t begin = unit * args.unit;
      const std::int32_t end = live - begin < args.unit ? live : begin + args.unit;
      for (std::int32_t base = 0; base < experts; base += args.tile) {
        for (std::int32_t i = lane; i < args.tile && base + i < experts; i += kWarpSize)
          tile.store(i, args.per_unit[static_cast<std::int64_t>(unit) * experts + base + i]);
        ctx.sync_warp();
        for (std::int32_t first = begin; first < end; first += kWarpSize) {
          const std::int32_t selection = first + lane;
          const std::int32_t expert = selection < end ? expert_of(args.input, selection) : -1;
          const std::int32_t slot = expert - base;
          const bool counted = expert < experts && slot >= 0 && slot < args.tile;
          const std::uint32_t alike = ctx.match_any(counted ? slot : -1);
          const std::uint32_t before = alike & lanes_below(lane);
          const std::int32_t earlier = counted ? tile.load(slot) : 0;
          ctx.sync_warp();  // read by all lanes of an expert before the first of them moves it on
          if (counted && before == 0) tile.store(slot, earlier + count_bits(alike));
          ctx.sync_warp();
          if (counted)
            place(args, expert, selection, earlier + count_bits(before));
          else if (base == 0 && selection < end && (expert < 0 || expert == experts))
            args.plan.positions[selection] = -1;
        }
      }
    }
  }

  static SHUNT_DEVICE void place(const Args& args, std::int32_t expert, std::int32_t selection,
                                 std::int32_t rank) {
    const bool room = rank < args.plan.counts[expert];
    const std::int32_t row = args.plan.starts[expert] + rank;
    args.plan.positions[selection] = room ? row : -1;
    if (room && args.plan.selections != nullptr) args.plan.selections[row] = selection;
  }
};

}  // namespace shunt::cuda::detail

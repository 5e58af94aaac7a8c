#pragma once

// dispatch_recv: waiting for every source, where its rows go, and the rows to their places.
#include <cstddef>
#include <cstdint>

#include <shunt/device/context.h>
#include <shunt/device/qualifiers.h>
#include <shunt/device/tasks.h>

#include "block.h"
#include "frame.h"
#include "net.h"
#include "pack/cuda/move_kernels.h"

namespace shunt::cuda::detail {

SHUNT_DEVICE const Announcement& announcement_of(const Frame& f, std::int32_t source) {
  return *f.own<const Announcement>(f.announcement(source));
}
/// [R] rows that the source sends to every rank, then [Lmax] to each of this rank's experts.
SHUNT_DEVICE const std::int32_t* announced_counts(const Frame& f, std::int32_t source) {
  return f.own<const std::int32_t>(f.announcement(source) + f.at.counts_at);
}

/// Messages that have come from `peer` when all of this step have, counted since the beginning: put only.
struct MessagesSoFar {
  const std::uint64_t* expected;
  SHUNT_DEVICE std::uint64_t operator()(std::int32_t peer) const { return expected[peer]; }
};

template <class Net>
struct ArriveArgs {
  Frame frame;
  Net net;
};

/// One block: waits for the announcements (and, where rows are put, for the rows), decides whether the step is void, and
/// makes counts and starts. The only kernel of dispatch that waits.
template <class Net>
struct Arrive {
  static constexpr const char* kName = "arrive";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kWarps = kThreads / kWarpSize;
  static constexpr std::int32_t kSharedBytes = kWarps * 16;
  using Args = ArriveArgs<Net>;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    State& state = f.state();
    const std::uint64_t begin = ctx.clock_ns();
    const bool dead = state.dead != 0;
    if (dead || !await_all(ctx, f, args.net, Signal::announced, false, begin, ThisStep{state.epoch}) ||
        !await_rows(ctx, args, begin))
      return nothing(ctx, f);
    const bool is_void = judge(ctx, f);
    count(ctx, f, is_void);
  }

  template <class Context>
  static SHUNT_DEVICE bool await_rows(Context& ctx, const Args& args, std::uint64_t begin) {
    if constexpr (Net::kLoadStore) {
      return true;
    } else {
      const Frame& f = args.frame;
      auto* expected = f.own<std::uint64_t>(f.at.expected_at);
      for (std::int32_t source = ctx.thread(); source < f.num_ranks; source += ctx.num_threads())
        if (f.lives(source))
          expected[source] += static_cast<std::uint64_t>(announcement_of(f, source).num_rows);
      ctx.sync_block();
      return await_all(ctx, f, args.net, Signal::token_messages, false, begin, MessagesSoFar{expected});
    }
  }

  /// A dead object has no rows, which is what the experts' kernels then see.
  template <class Context>
  static SHUNT_DEVICE void nothing(Context& ctx, const Frame& f) {
    ctx.sync_block();
    for (std::int32_t e = ctx.thread(); e < f.most_experts; e += ctx.num_threads())
      f.own<std::int32_t>(f.at.counts_out_at)[e] = 0;
    for (std::int32_t e = ctx.thread(); e <= f.most_experts; e += ctx.num_threads())
      f.own<std::int32_t>(f.at.starts_out_at)[e] = 0;
    if (ctx.thread() != 0) return;
    f.state().num_rows = 0;
    f.state().is_void = 1;
  }

  /// Every rank finds the same, from the same announcements.
  template <class Context>
  static SHUNT_DEVICE bool judge(Context& ctx, const Frame& f) {
    State& state = f.state();
    std::int32_t wrong = kNobody;
    for (std::int32_t source = ctx.thread(); source < f.num_ranks; source += ctx.num_threads())
      if (f.lives(source) && announcement_of(f, source).trouble != 0 && source < wrong) wrong = source;
    wrong = ScanExperts::reduce(ctx, wrong, 0, ScanExperts::Min{});
    Trouble trouble = Trouble::none;
    std::int32_t peer = wrong;
    std::int64_t a = 0;
    std::int64_t b = 0;
    if (wrong != kNobody) {
      const Announcement& announcement = announcement_of(f, wrong);
      trouble = static_cast<Trouble>(announcement.trouble);
      a = announcement.a;
      b = announcement.b;
    } else if (f.at.bounded) {
      std::int32_t most = -1;
      std::int32_t at = kNobody;
      for (std::int32_t rank = ctx.thread(); rank < f.num_ranks; rank += ctx.num_threads()) {
        std::int64_t total = 0;
        for (std::int32_t source = 0; source < f.num_ranks; ++source)
          if (f.lives(source)) total += announced_counts(f, source)[rank];
        const auto rows = static_cast<std::int32_t>(total < kNobody ? total : kNobody);
        if (rows > most) {
          most = rows;
          at = rank;
        }
      }
      const std::int32_t mine = most;
      most = ScanExperts::reduce(ctx, most, kWarps * 4, ScanExperts::Max{});
      at = ScanExperts::reduce(ctx, mine == most ? at : kNobody, kWarps * 8, ScanExperts::Min{});
      if (most > f.at.max_arriving) {
        trouble = Trouble::overflow;
        peer = at;
        a = most;
      }
    }
    const bool is_void = trouble != Trouble::none;
    ctx.sync_block();
    if (ctx.thread() == 0) {
      state.is_void = is_void ? 1 : 0;
      if (is_void) report(ctx, f, f.status->void_step, trouble, peer, a, b, false);
    }
    return is_void;
  }

  template <class Context>
  static SHUNT_DEVICE void count(Context& ctx, const Frame& f, bool is_void) {
    const std::int32_t experts = f.local_experts();
    auto* counts = f.own<std::int32_t>(f.at.counts_out_at);
    auto* starts = f.own<std::int32_t>(f.at.starts_out_at);
    auto* compact = f.own<std::int32_t>(f.at.compact_at);
    auto* cells = f.own<std::int32_t>(f.at.cells_at);
    auto sums = ctx.template shared<std::uint64_t>(0, kWarps);
    std::uint64_t carry = 0;  // upper half: rows with padding; lower half: rows
    for (std::int32_t base = 0; base < experts; base += ctx.num_threads()) {
      const std::int32_t expert = base + ctx.thread();
      const bool mine = expert < experts;
      std::int32_t rows = 0;
      for (std::int32_t source = 0; mine && !is_void && source < f.num_ranks; ++source) {
        cells[static_cast<std::int64_t>(source) * f.most_experts + expert] = rows;
        const std::int32_t came = f.lives(source) ? announced_counts(f, source)[f.num_ranks + expert] : 0;
        rows += came;
        if (!f.by_group) continue;
        std::int32_t& from_group = f.own<std::int32_t>(
            f.at.by_group_at)[static_cast<std::int64_t>(expert) * f.num_groups() + source / f.group_size];
        from_group = source % f.group_size == 0 ? came : from_group + came;
      }
      // A void step has no rows, not even padding, whose places would keep what an earlier step left there.
      std::int64_t block = 0;
      if (!is_void)
        block = f.rows_per_expert > 0 ? f.rows_per_expert : round_up(rows, std::int64_t{f.alignment});
      const std::uint64_t own =
          mine ? static_cast<std::uint64_t>(block) << 32 | static_cast<std::uint32_t>(rows) : 0;
      std::uint64_t inclusive = own;
      for (std::int32_t distance = 1; distance < kWarpSize; distance *= 2) {
        const std::uint64_t below = ctx.shuffle_up(inclusive, distance);
        if (ctx.lane() >= distance) inclusive += below;
      }
      if (ctx.lane() == kWarpSize - 1) sums.store(ctx.warp(), inclusive);
      ctx.sync_block();
      std::uint64_t start = carry + inclusive - own;
      for (std::int32_t w = 0; w < kWarps; ++w) {
        const std::uint64_t of_warp = sums.load(w);
        if (w < ctx.warp()) start += of_warp;
        carry += of_warp;
      }
      ctx.sync_block();  // the sums are read before the next round writes them
      if (!mine) continue;
      counts[expert] = rows;
      starts[expert] = static_cast<std::int32_t>(start >> 32);
      compact[expert] = static_cast<std::int32_t>(start & 0xffffffffU);
    }
    for (std::int32_t group = ctx.thread(); group < f.num_groups(); group += ctx.num_threads()) {
      std::int32_t rows = 0;
      for (std::int32_t member = 0; member < f.group_size; ++member) {
        const std::int32_t source = group * f.group_size + member;
        if (f.lives(source) && !is_void) rows += announcement_of(f, source).num_entries;
      }
      f.own<std::int32_t>(f.at.group_rows_at)[group] = rows;
    }
    first_entries(ctx, f);
    if (ctx.thread() != 0) return;
    starts[experts] = static_cast<std::int32_t>(carry >> 32);
    f.state().num_rows = static_cast<std::int32_t>(carry & 0xffffffffU);
  }

  /// Where the entries of each expert begin in each announcement. A warp for each source.
  template <class Context>
  static SHUNT_DEVICE void first_entries(Context& ctx, const Frame& f) {
    for (std::int32_t source = ctx.warp(); source < f.num_ranks; source += kWarps) {
      if (!f.lives(source)) continue;
      const std::int32_t* came = announced_counts(f, source) + f.num_ranks;
      auto* firsts = f.own<std::int32_t>(f.at.firsts_at) + static_cast<std::int64_t>(source) * f.most_experts;
      std::int32_t carry = 0;
      for (std::int32_t base = 0; base < f.local_experts(); base += kWarpSize) {
        const std::int32_t expert = base + ctx.lane();
        const std::int32_t rows = expert < f.local_experts() ? came[expert] : 0;
        std::int32_t inclusive = rows;
        for (std::int32_t distance = 1; distance < kWarpSize; distance *= 2) {
          const std::int32_t below = ctx.shuffle_up(inclusive, distance);
          if (ctx.lane() >= distance) inclusive += below;
        }
        if (expert < f.local_experts()) firsts[expert] = carry + inclusive - rows;
        carry += ctx.shuffle(inclusive, kWarpSize - 1);
      }
    }
  }
};

struct PlaceArgs {
  Frame frame;
};

/// Lists the arrivals by (expert, source, token), each with its row; views get their pointers, padding its content.
struct PlaceEntries {
  static constexpr const char* kName = "place_entries";
  static constexpr std::int32_t kThreads = 256;
  using Args = PlaceArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    if (f.state().is_void != 0) return;
    const std::int64_t cells = static_cast<std::int64_t>(f.local_experts()) * f.num_ranks;
    for (const std::int64_t cell : device::tasks_of_warp(ctx, cells)) {
      const auto expert = static_cast<std::int32_t>(cell / f.num_ranks);
      const auto source = static_cast<std::int32_t>(cell - static_cast<std::int64_t>(expert) * f.num_ranks);
      if (f.lives(source)) place(ctx, f, expert, source);
    }
    if (f.delivery == Delivery::view || f.padding != PaddingRows::untouched) pad(ctx, f);
  }

  template <class Context>
  static SHUNT_DEVICE void place(Context& ctx, const Frame& f, std::int32_t expert, std::int32_t source) {
    const std::int64_t at = static_cast<std::int64_t>(source) * f.most_experts + expert;
    const std::int32_t count = announced_counts(f, source)[f.num_ranks + expert];
    const std::int32_t before = f.own<std::int32_t>(f.at.cells_at)[at];
    const std::int32_t row = f.own<std::int32_t>(f.at.starts_out_at)[expert] + before;
    auto* arrivals = f.own<Arrival>(f.at.arrivals_at) + f.own<std::int32_t>(f.at.compact_at)[expert] + before;
    const auto* entries =
        f.own<const Entry>(f.announcement(source) + f.at.entry_at) + f.own<std::int32_t>(f.at.firsts_at)[at];
    for (std::int32_t i = ctx.lane(); i < count; i += kWarpSize) {
      const Entry entry = entries[i];
      arrivals[i] = {row + i, source, entry.slot, entry.selection};
      if (f.delivery == Delivery::view) point(f, row + i, f.own<std::byte>(f.landing(source, entry.slot)));
    }
  }

  static SHUNT_DEVICE void point(const Frame& f, std::int64_t row, const std::byte* slot) {
    f.own<const void*>(f.at.row_pointers_at)[row] = slot;
    if (f.scale != ScaleType::none)
      f.own<const void*>(f.at.scale_pointers_at)[row] = slot == nullptr ? nullptr : slot + f.at.scale_at;
  }

  template <class Context>
  static SHUNT_DEVICE void pad(Context& ctx, const Frame& f) {
    const auto* starts = f.own<const std::int32_t>(f.at.starts_out_at);
    const auto* counts = f.own<const std::int32_t>(f.at.counts_out_at);
    const bool view = f.delivery == Delivery::view;
    for (std::int32_t expert = 0; expert < f.local_experts(); ++expert) {
      const std::int32_t begin = starts[expert] + counts[expert];
      for (const std::int64_t i : device::tasks_of_warp(ctx, starts[expert + 1] - begin)) {
        const std::int64_t row = begin + i;
        if (!view)
          fill(ctx, f, row);
        else if (ctx.lane() == 0)
          point(f, row, nullptr);
      }
    }
  }

  template <class Context>
  static SHUNT_DEVICE void fill(Context& ctx, const Frame& f, std::int64_t row) {
    const std::uint32_t word = f.padding == PaddingRows::zero ? 0U : 0xffffffffU;
    const Word16 words{{word, word, word, word}};
    std::byte* const to = f.own<std::byte>(f.at.rows_at + row * f.at.row_stride);
    const std::int64_t whole = f.at.row_bytes / 16 * 16;
    for (std::int64_t i = std::int64_t{16} * ctx.lane(); i < whole; i += 16 * kWarpSize)
      ctx.store16_once(to + i, words);
    for (std::int64_t i = whole + ctx.lane(); i < f.at.row_bytes; i += kWarpSize)
      to[i] = static_cast<std::byte>(word & 0xffU);
    std::byte* const scales = f.own<std::byte>(f.at.scales_at + row * f.at.row_scale_bytes);
    for (std::int64_t i = ctx.lane(); i < f.at.row_scale_bytes; i += kWarpSize)
      scales[i] = static_cast<std::byte>(word & 0xffU);
  }
};

/// Rows from where they landed to their places. Both begin at multiples of 16 bytes.
struct CopyRows {
  static constexpr const char* kName = "copy_rows";
  static constexpr std::int32_t kThreads = 256;
  using Args = PlaceArgs;
  using Part = RowPart<16>;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    const std::int64_t parts = Part::parts_of(f.at.row_bytes);
    const std::int64_t tasks = f.state().num_rows * parts;
    const auto* arrivals = f.own<const Arrival>(f.at.arrivals_at);
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t i = task / parts;
      const std::int64_t part = task - i * parts;
      const Arrival arrival = arrivals[i];
      const std::byte* const from = f.own<std::byte>(f.landing(arrival.source, arrival.slot));
      Part data;
      data.load(ctx, from, f.at.row_bytes, part);
      data.store(ctx, f.own<std::byte>(f.at.rows_at + arrival.row * f.at.row_stride), f.at.row_bytes);
      if (part == 0 && f.at.row_scale_bytes != 0)
        copy_scales(ctx, f, from + f.at.scale_at,
                    f.own<std::byte>(f.at.scales_at + arrival.row * f.at.row_scale_bytes));
    }
  }
};

}  // namespace shunt::cuda::detail

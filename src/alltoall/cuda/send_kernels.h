#pragma once

// dispatch_send: what this rank's tokens ask for, and the tokens themselves to every rank that has experts of them.
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

SHUNT_DEVICE std::int64_t id_at(const ExpertIds& ids, std::int32_t top_k, std::int64_t token,
                                std::int32_t k) {
  const std::int64_t at = token * (ids.row_stride == 0 ? top_k : ids.row_stride) + k;
  return ids.wide ? static_cast<const std::int64_t*>(ids.data)[at]
                  : static_cast<const std::int32_t*>(ids.data)[at];
}

struct PrepareArgs {
  Frame frame;
  SendCall call;
};

/// Begins a step: its number, how many tokens there are, which of them this member sends, and what is wrong with the ids.
/// Writes for each selection of the group where its result comes, and for each of the share its expert and, where the
/// token goes to that rank for the first time, the rank: the keys of one plan.
struct PrepareSend {
  static constexpr const char* kName = "prepare_send";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kSharedBytes = 4;
  using Args = PrepareArgs;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    State& state = f.state();
    const std::int64_t given = args.call.input.num_tokens;
    const std::int64_t asked = args.call.input.live_tokens == nullptr ? given : *args.call.input.live_tokens;
    const std::int64_t tokens = asked >= 0 && asked <= given ? asked : 0;
    const TokenShare share = token_share(tokens, f.members, f.member);
    for (const std::int64_t i : device::items_of_thread(ctx, tokens * f.top_k)) prepare(ctx, args, share, i);
    if (!is_last_block(ctx, state, 0) || ctx.thread() != 0) return;
    begin_step(args, state, asked, tokens, share);
  }

  template <class Context>
  static SHUNT_DEVICE void prepare(Context& ctx, const Args& args, TokenShare share, std::int64_t selection) {
    const Frame& f = args.frame;
    const ExpertIds& ids = args.call.ids;
    const std::int32_t experts = f.partition.num_experts;
    const std::int64_t token = selection / f.top_k;
    const auto k = static_cast<std::int32_t>(selection - token * f.top_k);
    const std::int64_t id = id_at(ids, f.top_k, token, k);
    const bool inside = id >= 0 && id < experts;
    std::int32_t owner = inside ? f.partition.owner(static_cast<std::int32_t>(id)) : -1;
    if (owner >= 0 && !f.lives(owner)) owner = -1;
    bool twice = false;
    bool first = true;
    for (std::int32_t j = 0; inside && j < k; ++j) {
      const std::int64_t other = id_at(ids, f.top_k, token, j);
      if (other == id) twice = true;
      if (other >= 0 && other < experts && f.partition.owner(static_cast<std::int32_t>(other)) == owner)
        first = false;
    }
    if (id < -1 || id >= experts)
      find(ctx, f.state(), selection, Trouble::id_outside);
    else if (twice)
      find(ctx, f.state(), selection, Trouble::id_twice);
    f.own<std::int32_t>(f.at.return_positions_at)[selection] =
        owner >= 0 ? static_cast<std::int32_t>(selection) : -1;
    if (f.group_size > 1 && owner >= 0)
      ctx.fetch_add(device::Scope::device, f.own<std::uint32_t>(f.at.selected_at) + owner, 1U);
    if (token < share.begin || token >= share.end) return;
    std::int32_t* keys = f.own<std::int32_t>(f.at.plan_ids_at) + (token - share.begin) * 2 * f.top_k;
    keys[k] = owner >= 0 ? static_cast<std::int32_t>(id) : -1;
    keys[f.top_k + k] = owner >= 0 && first ? experts + owner : -1;
  }

  /// Keeps the first selection that is wrong, whichever thread comes first.
  template <class Context>
  static SHUNT_DEVICE void find(Context& ctx, State& state, std::int64_t selection, Trouble trouble) {
    const std::uint64_t found =
        static_cast<std::uint64_t>(selection) * 4 + static_cast<std::uint64_t>(trouble);
    std::uint64_t known = ctx.load_relaxed(device::Scope::device, &state.first_invalid);
    while (found < known) {
      const std::uint64_t was =
          ctx.compare_exchange(device::Scope::device, &state.first_invalid, known, found);
      if (was == known) return;
      known = was;
    }
  }

  static SHUNT_DEVICE void begin_step(const Args& args, State& state, std::int64_t asked, std::int64_t tokens,
                                      TokenShare share) {
    const Frame& f = args.frame;
    const std::uint64_t invalid = state.first_invalid;
    state.first_invalid = ~std::uint64_t{0};
    state.trouble = 0;
    state.a = 0;
    state.b = 0;
    if (asked != tokens) {
      state.trouble = static_cast<std::int32_t>(Trouble::live_tokens);
      state.a = args.call.input.num_tokens;
      state.b = asked;
    } else if (invalid != ~std::uint64_t{0}) {
      const auto selection = static_cast<std::int64_t>(invalid / 4);
      state.trouble = static_cast<std::int32_t>(invalid % 4);
      state.a = selection;
      state.b =
          id_at(args.call.ids, f.top_k, selection / f.top_k, static_cast<std::int32_t>(selection % f.top_k));
    }
    const bool goes_on = state.trouble == 0 && state.dead == 0;
    if (state.dead == 0) ++state.epoch;
    state.tokens = goes_on ? static_cast<std::int32_t>(tokens) : 0;
    state.share_begin = static_cast<std::int32_t>(share.begin);
    state.share_tokens = goes_on ? static_cast<std::int32_t>(share.end - share.begin) : 0;
  }
};

/// What the plan has made of the share.
struct SharePlan {
  const std::int32_t* ids;         ///< [share, 2 K]
  const std::int32_t* counts;      ///< [E + R]
  const std::int32_t* starts;      ///< [E + R + 1]
  const std::int32_t* positions;   ///< [share, 2 K]
  const std::int32_t* selections;  ///< t * 2 K + k, sorted by key

  explicit SHUNT_DEVICE SharePlan(const Frame& f)
      : ids(f.own<std::int32_t>(f.at.plan_ids_at)),
        counts(f.own<std::int32_t>(f.at.plan_counts_at)),
        starts(f.own<std::int32_t>(f.at.plan_starts_at)),
        positions(f.own<std::int32_t>(f.at.plan_positions_at)),
        selections(f.own<std::int32_t>(f.at.plan_selections_at)) {}

  /// Rows of the experts of `owner` that this rank sends.
  [[nodiscard]] SHUNT_DEVICE std::int32_t rows_for(const Frame& f, std::int32_t owner) const {
    const std::int32_t first = f.partition.first(owner);
    return starts[first + f.partition.count(owner)] - starts[first];
  }
  /// Landing slot of the token for which selection (token, j) is the first one to its rank; `rank` gets that, -1: none.
  [[nodiscard]] SHUNT_DEVICE std::int32_t slot(const Frame& f, std::int64_t token, std::int32_t j,
                                               std::int32_t& rank) const {
    const std::int64_t at = token * 2 * f.top_k + f.top_k + j;
    const std::int32_t key = ids[at];
    rank = key < 0 ? -1 : key - f.partition.num_experts;
    return key < 0 ? -1 : positions[at] - starts[key];
  }
};

/// Where rows and announcements go: straight to the peers.
struct ToPeers {
  LoadStoreNet net;
  static constexpr bool kSignals = true;

  /// Number of places a row may go to.
  static SHUNT_DEVICE std::int32_t ways(const Frame& f) { return f.top_k; }
  /// Slot of way j, or null.
  [[nodiscard]] SHUNT_DEVICE std::byte* slot(const Frame& f, const SharePlan& plan, std::int64_t token,
                                             std::int32_t j) const {
    std::int32_t rank = -1;
    const std::int32_t slot = plan.slot(f, token, j, rank);
    return rank < 0 ? nullptr : net.peer(rank) + f.landing(f.rank, slot);
  }
  [[nodiscard]] SHUNT_DEVICE std::byte* announcement(const Frame& f, std::int32_t owner) const {
    return net.peer(owner) + f.announcement(f.rank);
  }
};

/// Into the own memory, from where a net puts it.
struct ToStaging {
  static constexpr bool kSignals = false;

  static SHUNT_DEVICE std::int32_t ways(const Frame& /*f*/) { return 1; }
  [[nodiscard]] SHUNT_DEVICE std::byte* slot(const Frame& f, const SharePlan& /*plan*/, std::int64_t token,
                                             std::int32_t /*j*/) const {
    return f.own<std::byte>(f.at.staging_at + token * f.at.slot_stride);
  }
  [[nodiscard]] SHUNT_DEVICE std::byte* announcement(const Frame& f, std::int32_t owner) const {
    return f.own<std::byte>(f.at.out_announcements_at + owner * f.at.announce_stride);
  }
};

template <class Target>
struct SendArgs {
  Frame frame;
  Target target;
  DeviceRows tokens;
  const void* scales = nullptr;
  bool in_place = false;  ///< Rows lie where the net puts from: only the announcements are written
};

/// Writes to every live owner what its experts get, then raises its signal once all of the grid is written.
template <class Target, class Context>
SHUNT_DEVICE void announce(Context& ctx, const SendArgs<Target>& args) {
  const Frame& f = args.frame;
  const SharePlan plan(f);
  State& state = f.state();
  const std::int32_t experts = f.partition.num_experts;
  const std::int64_t entries = plan.starts[experts];
  for (const std::int64_t i : device::items_of_thread(ctx, entries)) {
    const std::int32_t at = plan.selections[i];
    const std::int32_t token = at / (2 * f.top_k);
    const std::int32_t k = at - token * 2 * f.top_k;
    const std::int32_t owner = f.partition.owner(plan.ids[at]);
    std::int32_t rank = -1;
    Entry entry{-1, (state.share_begin + token) * f.top_k + k};
    for (std::int32_t j = 0; j <= k && rank != owner; ++j) entry.slot = plan.slot(f, token, j, rank);
    auto* to = reinterpret_cast<Entry*>(args.target.announcement(f, owner) + f.at.entry_at);
    to[i - plan.starts[f.partition.first(owner)]] = entry;
  }
  const std::int64_t words = std::int64_t{1} + f.num_ranks + f.most_experts;
  for (const std::int64_t i : device::items_of_thread(ctx, f.num_ranks * words)) {
    const auto owner = static_cast<std::int32_t>(i / words);
    const auto word = static_cast<std::int32_t>(i - owner * words);
    if (!f.lives(owner)) continue;
    std::byte* to = args.target.announcement(f, owner);
    if (word == 0) {
      *reinterpret_cast<Announcement*>(to) = {
          state.trouble, plan.counts[experts + owner], plan.rows_for(f, owner), 0, state.a, state.b};
      continue;
    }
    auto* counts = reinterpret_cast<std::int32_t*>(to + f.at.counts_at);
    const std::int32_t expert = word - 1 - f.num_ranks;
    if (expert < 0)
      counts[word - 1] = plan.rows_for(f, word - 1);
    else
      counts[word - 1] =
          expert < f.partition.count(owner) ? plan.counts[f.partition.first(owner) + expert] : 0;
  }
  if constexpr (Target::kSignals) {
    if (!is_last_block(ctx, state, 0)) return;
    for (std::int32_t peer = ctx.thread(); peer < f.num_ranks; peer += ctx.num_threads())
      if (f.lives(peer)) args.target.net.raise(ctx, peer, f.signal(Signal::announced, f.rank), state.epoch);
  }
}

/// Tokens as they are, in units of Bytes.
template <std::int32_t Bytes, class Target>
struct SendCopy {
  static constexpr const char* kName = "send_copy";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kSharedBytes = 4;
  using Args = SendArgs<Target>;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    const State& state = f.state();
    if (state.dead != 0) return;
    const SharePlan plan(f);
    const std::int64_t parts = RowPart<Bytes>::parts_of(f.at.row_bytes);
    const std::int64_t tasks = args.in_place ? 0 : state.share_tokens * parts;
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t token = task / parts;
      const std::int64_t part = task - token * parts;
      RowPart<Bytes> data;
      data.load(ctx, row_of(args.tokens, state.share_begin + token), f.at.row_bytes, part);
      for (std::int32_t j = 0; j < Target::ways(f); ++j) {
        std::byte* const to = args.target.slot(f, plan, token, j);
        if (to == nullptr) continue;
        data.store(ctx, to, f.at.row_bytes);
        if (part == 0 && f.at.row_scale_bytes != 0)
          copy_scales(
              ctx, f,
              static_cast<const std::byte*>(args.scales) + (state.share_begin + token) * f.at.row_scale_bytes,
              to + f.at.scale_at);
      }
    }
    announce(ctx, args);
  }
};

/// Tokens as fp8, quantised once.
template <class From, class To, class Target>
struct SendQuantise {
  static constexpr const char* kName = "send_quantise";
  static constexpr std::int32_t kThreads = 256;
  static constexpr std::int32_t kSharedBytes = 4;
  using Args = SendArgs<Target>;

  struct Writer {
    const Args* args;
    const SharePlan* plan;
    std::int64_t token;

    template <class Context>
    SHUNT_DEVICE void elements(Context& ctx, std::int64_t column, std::int64_t count,
                               const Word16& packed) const {
      for (std::int32_t j = 0; j < Target::ways(args->frame); ++j) {
        std::byte* const to = args->target.slot(args->frame, *plan, token, j);
        if (to != nullptr) store_some(ctx, to + column, packed, count);
      }
    }
    SHUNT_DEVICE void scale(std::int64_t b, std::uint32_t stored) const {
      const Frame& f = args->frame;
      for (std::int32_t j = 0; j < Target::ways(f); ++j) {
        std::byte* const to = args->target.slot(f, *plan, token, j);
        if (to == nullptr) continue;
        if (f.scale == ScaleType::f32)
          reinterpret_cast<std::uint32_t*>(to + f.at.scale_at)[b] = stored;
        else
          to[f.at.scale_at + b] = static_cast<std::byte>(stored);
      }
    }
  };

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    const State& state = f.state();
    if (state.dead != 0) return;
    const SharePlan plan(f);
    const std::int64_t parts = quantise_parts(f.hidden, f.scale_block);
    const std::int64_t tasks = state.share_tokens * parts;
    for (const std::int64_t task : device::tasks_of_warp(ctx, tasks)) {
      const std::int64_t token = task / parts;
      quantise_part<From, To>(ctx, row_of(args.tokens, state.share_begin + token), f.hidden, f.scale,
                              f.scale_block, task - token * parts, Writer{&args, &plan, token});
    }
    announce(ctx, args);
  }
};

template <class Net>
struct PutArgs {
  Frame frame;
  Net net;
};

/// What was staged, through a net: each token to every rank that it goes to, and the announcements.
template <class Net>
struct PutTokens {
  static constexpr const char* kName = "put_tokens";
  static constexpr std::int32_t kThreads = 256;
  using Args = PutArgs<Net>;

  template <class Context>
  static SHUNT_DEVICE void run(Context& ctx, const Args& args) {
    const Frame& f = args.frame;
    const State& state = f.state();
    if (state.dead != 0) return;
    const SharePlan plan(f);
    for (const std::int64_t peer : device::tasks_of_warp(ctx, f.num_ranks)) {
      const auto to = static_cast<std::int32_t>(peer);
      if (!f.lives(to)) continue;
      args.net.put(ctx, to, f.announcement(f.rank), f.at.out_announcements_at + to * f.at.announce_stride,
                   f.at.entry_at + plan.rows_for(f, to) * static_cast<std::int64_t>(sizeof(Entry)),
                   f.signal(Signal::announced, f.rank));
    }
    const std::int64_t bytes =
        f.at.row_scale_bytes == 0 ? f.at.row_bytes : f.at.scale_at + f.at.row_scale_bytes;
    for (const std::int64_t task : device::tasks_of_warp(ctx, std::int64_t{state.share_tokens} * f.top_k)) {
      const std::int64_t token = task / f.top_k;
      std::int32_t to = -1;
      const std::int32_t slot = plan.slot(f, token, static_cast<std::int32_t>(task - token * f.top_k), to);
      if (to >= 0)
        args.net.put(ctx, to, f.landing(f.rank, slot), f.at.staging_at + token * f.at.slot_stride, bytes,
                     f.signal(Signal::token_messages, f.rank));
    }
  }
};

}  // namespace shunt::cuda::detail

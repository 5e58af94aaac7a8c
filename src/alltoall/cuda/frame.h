#pragma once

// What the kernels of the step between ranks share: where everything lies, and what they write for each other and for the
// host. Plain numbers and pointers, read by nvcc and by the host compiler.
#include <cstddef>
#include <cstdint>

#include <shunt/alltoall/config.h>
#include <shunt/alltoall/cuda.h>
#include <shunt/device/qualifiers.h>
#include <shunt/layout/partition.h>
#include <shunt/pack/cuda.h>

namespace shunt::cuda::detail {

/// Signals of a rank, [kind, rank that raises it]. All but the message counts are raised once a step, so that their value
/// is the number of the step.
enum class Signal : std::int32_t {
  announced,       ///< A source's announcement is there (load and store: its rows too)
  returned,        ///< An owner's results are there (put: its header; the rows are counted)
  token_messages,  ///< Put only: rows that have landed from a source since the beginning
  row_messages,    ///< Put only: results that have come from an owner since the beginning
  committed,       ///< With a mask only: a rank has everything of its step
  accused,         ///< A rank has given up and says whom it waited for
};
inline constexpr std::int32_t kSignalKinds = 6;

/// Why a step is void, or an object dead. 0: neither.
enum class Trouble : std::int32_t {
  none,
  id_outside,      ///< peer: the rank that brought it; a: t * K + k; b: the id
  id_twice,        ///< The same
  live_tokens,     ///< b: *live_tokens; a: tokens given
  overflow,        ///< peer: the rank; a: rows that would arrive
  timeout,         ///< peer: whose signal is missing. From here on: the object is dead
  accused,         ///< peer: whom the rank `a` gave up on: itself where it found its own part wrong
  other_replicas,  ///< peer: the owner; a: results that this rank's tokens ask for; b: those that came
};

/// One thing that kernels have found. One writer each: kernels until `trouble` is set, then the host clears it.
struct Finding {
  std::uint32_t trouble = 0;  ///< Trouble; written last, with release
  std::int32_t peer = -1;
  std::uint64_t epoch = 0;
  std::int64_t a = 0;
  std::int64_t b = 0;
  std::int32_t in_combine = 0;  ///< Which half it was found in
  std::int32_t pad = 0;
};

/// In memory that kernels and the host reach.
struct Status {
  Finding
      fatal;  ///< Why the object is dead. Of its own, so that no void step that was not asked about hides it
  Finding void_step;            ///< The first void step since the host has read the last one
  std::uint64_t completed = 0;  ///< Last step that every rank has everything of; with a mask only
};

/// In front of what a source tells an owner. Behind it: rows for every rank [R] i32, rows for each local expert of the
/// receiver [Lmax] i32, then at entry_at the entries, sorted by (expert, token).
struct Announcement {
  std::int32_t trouble;      ///< Trouble of the source; the step is void then
  std::int32_t num_rows;     ///< Token rows that go to this owner
  std::int32_t num_entries;  ///< Selections of its experts
  std::int32_t pad;
  std::int64_t a;  ///< As in Trouble
  std::int64_t b;
};

/// One selection, as announced to the expert's owner.
struct Entry {
  std::int32_t slot;       ///< Of the source's landing slots
  std::int32_t selection;  ///< t * K + k in the source's group: where the result goes
};

/// In front of the results of one owner.
struct alignas(16) ReturnHeader {
  std::int64_t num_rows;
};

/// A row that came, in the order of (expert, source, token).
struct alignas(16) Arrival {
  std::int32_t row;     ///< Its place among the rows, and its result's
  std::int32_t source;  ///< Rank
  std::int32_t slot;
  std::int32_t selection;
};

/// What the kernels of one rank keep between each other. Only single threads write it, and never while others read.
struct State {
  std::uint64_t epoch;        ///< Number of the step
  std::int32_t dead;          ///< Nothing does anything any more
  std::int32_t tokens;        ///< T of the step as far as it goes on: 0 when void
  std::int32_t share_begin;   ///< First token that this member sends
  std::int32_t share_tokens;  ///< How many
  std::int32_t trouble;       ///< What this rank brings that voids the step, as in Announcement
  std::int32_t live;          ///< T before anything was found
  std::int64_t a;
  std::int64_t b;
  std::uint64_t first_invalid;  ///< selection * 4 + Trouble of the first one; all ones: none
  std::uint32_t blocks_done;    ///< Of the kernel that counts them at the moment
  std::uint32_t given_up;       ///< A thread that waits has given up, so all do
  std::int32_t is_void;         ///< dispatch_recv has found that the step is void
  std::int32_t num_rows;        ///< Arrivals
  std::int32_t combine_tokens;  ///< Tokens that combine sums
};

/// Offsets in the symmetric memory of an object, the same on every rank, and sizes. See plan.h.
struct Places {
  std::int64_t row_bytes = 0;        ///< A token as it travels
  std::int64_t row_scale_bytes = 0;  ///< Its scales
  std::int64_t scale_at = 0;         ///< Where they lie in a slot: behind the row
  std::int64_t slot_stride = 0;      ///< Landing slots: row and scales, a multiple of 16
  std::int64_t row_stride = 0;       ///< Arriving rows, a multiple of 16
  std::int64_t result_bytes = 0;     ///< An expert result
  std::int64_t result_stride = 0;    ///< A multiple of 16
  std::int64_t counts_at = 0;        ///< In an announcement: [R] rows for every rank, then [Lmax]
  std::int64_t entry_at = 0;         ///< In an announcement
  std::int64_t announce_stride = 0;

  // Written by peers.
  std::int64_t signals_at = 0;  ///< [kSignalKinds * R] words
  std::int64_t accusations_at =
      0;  ///< [R] int64, 16 bytes apart: whom the writer accuses, once its signal says so
  std::int64_t return_headers_at = 0;  ///< [R] ReturnHeader, by owner
  std::int64_t announcements_at = 0;   ///< [R] by source
  std::int64_t landing_at = 0;         ///< [R, share] slots, by source
  std::int64_t returns_at = 0;         ///< [M * K] results
  // Only where peers cannot be stored to: what is put from here.
  std::int64_t out_accusation_at = 0;
  std::int64_t out_headers_at = 0;        ///< [R] ReturnHeader
  std::int64_t out_announcements_at = 0;  ///< [R]
  std::int64_t staging_at = 0;            ///< [share] slots
  // Of this rank alone.
  std::int64_t state_at = 0;
  std::int64_t bases_at = 0;             ///< [R] pointers
  std::int64_t alive_at = 0;             ///< [R] bytes
  std::int64_t plan_ids_at = 0;          ///< [share, 2 K] experts, then E + rank where a token goes first
  std::int64_t plan_counts_at = 0;       ///< [E + R]
  std::int64_t plan_starts_at = 0;       ///< [E + R + 1]
  std::int64_t plan_positions_at = 0;    ///< [share, 2 K]
  std::int64_t plan_selections_at = 0;   ///< [share * 2 K]
  std::int64_t plan_status_at = 0;       ///< PlanStatus
  std::int64_t plan_workspace_at = 0;    ///< As PlanSizes says, for any number of tokens
  std::int64_t return_positions_at = 0;  ///< [M * K] t * K + k, -1: no result comes
  std::int64_t selected_at = 0;          ///< [R] results that this rank's group expects; with groups only
  std::int64_t cells_at = 0;             ///< [R, Lmax] first row of each (source, expert)
  std::int64_t firsts_at = 0;            ///< [R, Lmax] its first entry
  std::int64_t compact_at = 0;           ///< [Lmax] first arrival of each expert
  std::int64_t expected_at = 0;          ///< [2, R] u64 messages counted so far; put only
  std::int64_t group_rows_at = 0;        ///< [G] arrivals from each group
  std::int64_t arrivals_at = 0;          ///< [max_arriving]
  std::int64_t counts_out_at = 0;        ///< [Lmax]
  std::int64_t starts_out_at = 0;        ///< [Lmax + 1]
  std::int64_t by_group_at = 0;          ///< [Lmax, G]
  std::int64_t rows_at = 0;              ///< [max_rows] rows
  std::int64_t scales_at = 0;            ///< [max_rows] dense scales
  std::int64_t row_pointers_at = 0;      ///< [max_rows]
  std::int64_t scale_pointers_at = 0;    ///< [max_rows]
  std::int64_t output_at = 0;            ///< [max_rows] results
  std::int64_t total_bytes = 0;

  std::int64_t share = 0;         ///< Most tokens that one member sends
  std::int64_t entries = 0;       ///< Most entries of one announcement
  std::int64_t max_arriving = 0;  ///< Bound of rows that carry tokens, any rank
  std::int64_t max_rows = 0;      ///< Bound of rows with padding, of the rank with the most experts
  bool bounded = false;           ///< More rows may arrive than max_arriving
};

/// What every kernel gets. By value, as a kernel's argument.
struct Frame {
  Places at;
  std::byte* local = nullptr;  ///< This rank's part
  Status* status = nullptr;    ///< As kernels reach it
  ExpertPartition partition;
  std::int32_t rank = 0;
  std::int32_t num_ranks = 1;     ///< R
  std::int32_t group_size = 1;    ///< dp_size
  std::int32_t members = 1;       ///< Live ranks of the own group, which share its tokens
  std::int32_t member = 0;        ///< This rank's place among them
  std::int32_t top_k = 1;         ///< K
  std::int32_t most_experts = 1;  ///< Lmax
  std::int32_t alignment = 1;
  std::int64_t rows_per_expert = 0;  ///< Padded layout; 0: packed
  std::int64_t hidden = 1;           ///< H
  std::int64_t scale_block = 128;
  DType token_dtype = DType::bf16;
  DType payload = DType::bf16;
  DType expert_dtype = DType::bf16;
  DType out_dtype = DType::bf16;
  ScaleType scale = ScaleType::none;
  PaddingRows padding = PaddingRows::untouched;
  Delivery delivery = Delivery::rows;
  bool by_group = false;
  bool masking = false;
  std::uint64_t deadline_ns = 0;

  template <class T>
  [[nodiscard]] SHUNT_HOST_DEVICE T* own(std::int64_t offset) const {
    return reinterpret_cast<T*>(local + offset);
  }
  [[nodiscard]] SHUNT_HOST_DEVICE State& state() const { return *own<State>(at.state_at); }
  [[nodiscard]] SHUNT_HOST_DEVICE std::int32_t local_experts() const { return partition.count(rank); }
  [[nodiscard]] SHUNT_HOST_DEVICE std::int32_t num_groups() const { return num_ranks / group_size; }
  [[nodiscard]] SHUNT_HOST_DEVICE std::int64_t num_scales() const {
    return scale == ScaleType::none ? 0 : (hidden + scale_block - 1) / scale_block;
  }
  [[nodiscard]] SHUNT_HOST_DEVICE bool lives(std::int32_t peer) const {
    return own<std::uint8_t>(at.alive_at)[peer] != 0;
  }
  [[nodiscard]] SHUNT_HOST_DEVICE std::int32_t signal(Signal kind, std::int32_t writer) const {
    return static_cast<std::int32_t>(kind) * num_ranks + writer;
  }
  [[nodiscard]] SHUNT_HOST_DEVICE std::int64_t announcement(std::int32_t source) const {
    return at.announcements_at + source * at.announce_stride;
  }
  [[nodiscard]] SHUNT_HOST_DEVICE std::int64_t landing(std::int32_t source, std::int64_t slot) const {
    return at.landing_at + (source * at.share + slot) * at.slot_stride;
  }
};

/// Arguments of the four calls, as the caller gave them.
struct SendCall {
  TokenInput input;
  ExpertIds ids;
  LaunchLimit limit;
};
struct ReceiveCall {
  LaunchLimit limit;
};
struct ReturnCall {
  DeviceRows results;
  LaunchLimit limit;
};
struct SumCall {
  Weights weights;
  DeviceRows out;
  std::int64_t num_tokens = 0;
  bool accumulate = false;
  LaunchLimit limit;
};

}  // namespace shunt::cuda::detail

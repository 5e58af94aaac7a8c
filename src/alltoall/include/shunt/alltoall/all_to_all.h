#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include <shunt/alltoall/config.h>
#include <shunt/alltoall/ticket.h>
#include <shunt/core/view.h>

namespace shunt {

class Transport;

/// Rows of one rank after dispatch. Everything points into the AllToAll's memory (views: into the sources'
/// memory) and is valid until this rank's combine_send.
struct Received {
  Rows rows;  ///< delivery rows: [W, H] of the payload dtype, expert-major. Empty for views.
  const void* scales = nullptr;  ///< [W, ceil(H / scale_block)] of the scale type, dense; null without scales
  View1<const void* const> row_pointers;    ///< delivery view: [W], null for padding rows. Empty for rows.
  View1<const void* const> scale_pointers;  ///< The same for scales; empty without scales.
  View1<const std::int64_t> starts;         ///< [L + 1] first row of each local expert; starts[L] = W
  View1<const std::int64_t> counts;         ///< [L] rows of each local expert that carry tokens
  View2<const std::int32_t>
      counts_by_group;        ///< [L, G] of them from each source group; only with counts_by_group
  std::int64_t num_rows = 0;  ///< Sum of counts
};

/// Tokens given to dispatch_send.
struct TokenInput {
  Rows tokens;  ///< [T, H] of token_dtype; T <= max_tokens
  const void* scales =
      nullptr;  ///< [T, ceil(H / scale_block)] dense, for tokens that are already fp8 with scales
  const std::int32_t* live_tokens =
      nullptr;                     ///< Where not null, read at the call: only the first *live_tokens count
  const float* weights = nullptr;  ///< [T, K] dense, those of combine_recv; with config.presum only
};

/// Result of the last step on this rank.
struct StepTimes {
  std::int64_t publish_ns = 0;        ///< dispatch_send: check, stage, announce
  std::int64_t dispatch_wait_ns = 0;  ///< dispatch_recv: waiting for announcements
  std::int64_t place_ns = 0;          ///< dispatch_recv: positions
  std::int64_t move_ns = 0;           ///< dispatch_recv: rows to their place
  std::int64_t combine_wait_ns = 0;   ///< combine_recv: waiting for expert results
  std::int64_t reduce_ns = 0;         ///< combine_recv: weighted sums
};

/// Bytes handled since construction.
struct ByteCounters {
  std::int64_t staged_tokens = 0;   ///< Copied (or quantised) because tokens did not lie in token_buffer()
  std::int64_t staged_outputs = 0;  ///< Copied because results did not lie in expert_output()
  std::int64_t moved_rows = 0;      ///< Payload and scales written to rows
  // To ranks whose memory cannot be loaded, as handed to the transport:
  std::int64_t crossed_rows = 0;      ///< Tokens and their scales in dispatch
  std::int64_t crossed_results = 0;   ///< Expert results, or partial sums, in combine
  std::int64_t crossed_messages = 0;  ///< Headers, entries, weights and checksums of both
};

/// Moves tokens to their experts and returns the weighted results. One step, in this order on every rank: dispatch_send,
/// dispatch_recv, the caller's experts, combine_send, combine_recv. Work placed between a send and its recv overlaps
/// with the peers.
/// Result:    same bits on every transport, rank count per node and timing. Rows sort by (expert, source group, token).
///            combine: out[t] = sum over k of weights[t, k] * row(t, k), in k order, fp32 fma, rounded once.
/// Ownership: borrows `transport`, which must outlive this; owns workspace_bytes() of symmetric memory.
/// Threads:   calls on one object must not overlap. Several objects on one transport may be in flight, as long as
///            every rank makes the calls of all objects of that transport in the same order.
/// Errors:    shunt::Error. invalid_argument and invalid_state: nothing moved, object usable, with the two exceptions
///            named at dispatch_recv and combine_recv. overflow: see dispatch_recv. timeout or peer_lost: names rank,
///            peer and phase; the object is dead and may only be destroyed. With on_peer_loss = mask instead
///            peer_masked, on every survivor in the same step, from whichever call it is in: the step is void and its
///            receipts used up; repeat it from dispatch_send. The lost ranks' experts contribute nothing to it (the row
///            of such a k is left out, weights are not renormalised) and alive() says who is left.
class AllToAll {
 public:
  /// Collective. Checks and compares the config on all ranks and allocates everything; no later call allocates.
  /// Errors: invalid_argument names the field and its range, or the rank whose config differs; out_of_memory says how
  ///         many bytes are needed and that max_tokens, max_recv_rows or the layout reduce them; unavailable where
  ///         on_peer_loss asks for a mask and the transport cannot; timeout and peer_lost. Nothing stays allocated.
  /// Cost:   pages of the whole workspace; with Movement::automatic also up to 6 sizes x 3 ways x 5 tries of moving rows
  ///         within the workspace (nothing below 2 MiB in flight, a fifth of a second at 128 MiB).
  AllToAll(Transport& transport, const AllToAllConfig& config);
  ~AllToAll();  ///< Local: waits for no peer.
  AllToAll(const AllToAll&) = delete;
  AllToAll& operator=(const AllToAll&) = delete;

  [[nodiscard]] const AllToAllConfig& config() const noexcept;

  /// Symmetric rows [M, H] of token_dtype; tokens that lie here (from row 0 on) are read in place. Must stay untouched
  /// from dispatch_send until this rank's combine_recv returns. Without quantisation only (else [0, H]).
  [[nodiscard]] MutableRows token_buffer() noexcept;
  /// Symmetric scales [M, ceil(H / scale_block)] that belong to token_buffer(), for tokens that are already fp8; or null.
  /// With on_peer_loss = mask ask for both and for expert_output() anew in every step: a loss moves them, and what they
  /// pointed to lives only until the next dispatch_send returns.
  [[nodiscard]] void* token_scales() noexcept;

  /// Starts moving tokens [T, H] to expert_ids [T, K]; id -1 skips that k. T is free per group and may be 0 (then both
  /// may be empty views); the ranks of a group pass the same tokens and ids. Rows of tokens and ids beyond the live
  /// count are not read. Tokens and ids may be reused on return, except tokens in token_buffer().
  /// Errors: invalid_argument on an id outside [-1, E) or named twice by a token (rank, token and k are named), on a
  ///         wrong shape or dtype; invalid_state where the step before has not been finished by combine_recv.
  Sent<Half::dispatch> dispatch_send(const TokenInput& input, View2<const std::int32_t> expert_ids);
  Sent<Half::dispatch> dispatch_send(const TokenInput& input, View2<const std::int64_t> expert_ids);

  /// Waits for every source and returns this rank's rows.
  /// Errors: overflow on every rank where a rank would receive more than max_recv_rows (the rank and the rows needed are
  ///         named), invalid_argument on every rank where check_replicas finds a difference: the step is void, the
  ///         receipt used up, the object usable.
  [[nodiscard]] Received dispatch_recv(Sent<Half::dispatch>&& sent);
  /// The same with the rows copied out, so that they outlive combine_send: to `rows` [>= W, H] of the payload dtype and,
  /// with scales, to `scales` [>= W, ceil(H / scale_block)]. Padding rows are copied only where config.padding fills them,
  /// else left untouched.
  /// Errors: also invalid_argument for a view (there are no rows to copy) and for a destination that is too small, which
  ///         is found when the rows have arrived: dispatch_recv has then happened and combine_send is next.
  [[nodiscard]] Received dispatch_recv(Sent<Half::dispatch>&& sent, MutableRows rows, void* scales = nullptr);

  /// Symmetric rows [max_rows(), H] of expert_dtype; results written here are read in place by combine. Write between
  /// dispatch_recv and combine_send only.
  [[nodiscard]] MutableRows expert_output() noexcept;

  /// Announces the expert results [W, H] of expert_dtype, row i for row i of Received. Rows elsewhere than in
  /// expert_output() are copied there first and may be reused on return. Padding rows are not read.
  /// Errors: invalid_argument on a wrong shape or dtype; invalid_state before dispatch_recv.
  Sent<Half::combine> combine_send(Rows results);

  /// Writes every element of out [T, H] of out_dtype, T as in this step's dispatch_send, from weights [T, K]; a skipped
  /// k's weight is not read. Rows of `out` from T on stay untouched. With accumulate, out's old values are the start of
  /// the sum.
  /// Errors: invalid_argument on a wrong shape or dtype (object usable, the receipt still good), and where the ranks of a
  ///         group turn out to have brought different tokens (object dead; check_replicas finds it earlier).
  void combine_recv(Sent<Half::combine>&& sent, View2<const float> weights, MutableRows out,
                    bool accumulate = false);

  /// [R] 1 for every rank that takes part; 0 for those masked.
  [[nodiscard]] View1<const std::uint8_t> alive() const noexcept;
  [[nodiscard]] std::int64_t max_rows() const noexcept;         ///< Upper bound of W on this rank
  [[nodiscard]] std::int64_t workspace_bytes() const noexcept;  ///< Symmetric memory held by this rank

  /// With record_waits: nanoseconds this rank waited for each peer since construction, [R] for one half.
  [[nodiscard]] View1<const std::int64_t> wait_ns(Half half) const noexcept;
  /// Collective. [R, R] of wait_ns: row = the rank that waited, column = the peer. Written to `out` on every rank.
  /// Errors: invalid_argument where out is not [R, R] (object usable); timeout and peer_lost.
  void gather_wait_ns(Half half, View2<std::int64_t> out);
  /// With record_waits, else zeros.
  [[nodiscard]] const StepTimes& step_times() const noexcept;
  [[nodiscard]] const ByteCounters& byte_counters() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shunt

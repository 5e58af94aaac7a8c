#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include <shunt/core/dtype.h>
#include <shunt/layout/slots.h>

namespace shunt {

/// How dispatch hands rows to the expert owner.
enum class Delivery : std::uint8_t {
  rows,  ///< Copied to their place in the owner's workspace.
  view,  ///< Pointers into the sources' memory, nothing copied. Needs payload == token_dtype.
};

/// What rows beyond an expert's count (padding) contain after dispatch_recv.
enum class PaddingRows : std::uint8_t {
  untouched,  ///< Whatever was there.
  zero,       ///< All bytes 0, scales included.
  poison,     ///< All bytes 0xff (NaN in every float dtype), scales included.
};

/// Who moves a row in dispatch, and with which stores. The result does not depend on it.
enum class Movement : std::uint8_t {
  automatic,  ///< The fastest here for what goes from one rank to one other, as measured by the constructor.
  pull,       ///< The owner copies from the source's tokens.
  push,       ///< The owner tells the source where the rows go; the source copies them there.
  push_streaming,  ///< The same with stores past the caches.
};

/// How rows cross to ranks whose memory cannot be loaded.
enum class Path : std::uint8_t {
  automatic,     ///< hierarchical where some node has several ranks, else flat
  flat,          ///< A token goes once to each rank that has experts of it.
  hierarchical,  ///< A token goes once to each node that has experts of it; its ranks read it there.
};

/// What happens when a rank is lost.
enum class PeerLoss : std::uint8_t {
  fail,  ///< The object is dead; the error names rank, peer and phase.
  mask,  ///< Survivors go on without it: Errc::peer_masked voids the step, which the caller repeats.
};

/// Fixed for the life of an AllToAll. Ranks must pass equal values; the constructor compares them.
/// Letters: R ranks, G = R / dp_size groups, E experts, L experts of one rank, K top-k, M max tokens, H
/// hidden.
struct AllToAllConfig {
  std::int64_t max_tokens = 0;   ///< M, most tokens one group brings to a step; 0 <= M < 2^31
  std::int32_t num_experts = 1;  ///< E >= 1, over all ranks; need not divide evenly
  std::int32_t top_k = 1;        ///< 1 <= K <= E
  std::int64_t hidden = 1;       ///< H >= 1, elements per row

  DType token_dtype = DType::bf16;  ///< Of the tokens handed to dispatch_send
  DType payload = DType::bf16;  ///< Of the rows that arrive: token_dtype, or fp8 for quantisation on the way
  ScaleType scale = ScaleType::none;  ///< Of the arriving rows. fp8 payload only; needed to quantise.
  std::int64_t scale_block = 128;     ///< Elements per scale, >= 1
  DType expert_dtype = DType::bf16;   ///< Of expert results: f32, f16 or bf16
  DType out_dtype = DType::bf16;      ///< Of combined tokens: f32, f16 or bf16

  std::int32_t dp_size = 1;  ///< Consecutive ranks that hold the same tokens; divides R
  RowLayout layout = RowLayout::packed;
  std::int64_t alignment = 1;  ///< Rows; see SlotLayout
  PaddingRows padding = PaddingRows::untouched;
  Delivery delivery = Delivery::rows;
  Movement movement = Movement::automatic;
  /// For Movement::automatic where all ranks reach each other's memory (else rows are pulled): from how many bytes in flight on the machine (one pair's bytes times R * R) rows are pushed, and
  /// pushed with streaming stores. -1: the constructor measures both; giving both spares its time.
  std::int64_t push_from_bytes = -1;
  std::int64_t stream_from_bytes = -1;

  /// Most rows that may arrive at one rank in a step; -1: the worst case, which cannot overflow. A smaller
  /// bound makes the workspace smaller and lets dispatch_recv fail with Errc::overflow. Packed layout only.
  std::int64_t max_recv_rows = -1;

  Path path = Path::automatic;
  /// Expert rows are summed on the rank (flat) or node (hierarchical) they come from before they cross, in k
  /// order in fp32, weighted, rounded once to expert_dtype; the sum at home then adds these partial rows with
  /// weight 1, in rank or node order, after the rows that were reached by load. Fewer bytes, other rounding.
  /// Needs TokenInput::weights; dp_size 1.
  bool presum = false;
  /// With a mask every step ends with one more exchange, and only one such object may live on a transport at a time.
  PeerLoss on_peer_loss = PeerLoss::fail;
  /// Rows, announcements and results that cross by put carry a checksum; a difference raises check_failed
  /// naming source, step and phase, and the object is dead.
  bool check_messages = false;

  bool counts_by_group = false;  ///< Fill Received::counts_by_group
  bool record_waits = false;     ///< Fill wait_ns() and step_times(); costs some clock reads per call
  bool check_replicas = false;   ///< Compare a hash of ids and tokens within each group; a difference raises
                                 ///< invalid_argument on every rank in dispatch_recv and voids the step
  /// Longest wait for a peer's signal inside one half; > 0. Through a landing rank half as long again. How long a put may
  /// wait for room is the transport's affair (LaunchOptions::stall_deadline, which should not be longer).
  std::chrono::milliseconds deadline{30'000};
};

/// Bytes of symmetric memory that one rank of R needs, each part and the sum. See docs/architecture.md for
/// the formula.
struct WorkspaceSize {
  std::int64_t rows = 0;      ///< Arriving rows and their scales (0 for views)
  std::int64_t outputs = 0;   ///< Expert results
  std::int64_t tokens = 0;    ///< Token buffer and scales
  std::int64_t messages = 0;  ///< Announcements and positions, all peers
  std::int64_t network = 0;   ///< Where tokens and results from other nodes land
  [[nodiscard]] std::int64_t total() const noexcept { return rows + outputs + tokens + messages + network; }
};

/// The size above, without allocating. `node_of` [R] names the node of every rank; empty: all reach each
/// other's memory.
/// Errors: Errc::invalid_argument as the constructor of AllToAll.
[[nodiscard]] WorkspaceSize workspace_size(const AllToAllConfig& config, std::int32_t num_ranks,
                                           std::span<const std::int32_t> node_of = {});

}  // namespace shunt

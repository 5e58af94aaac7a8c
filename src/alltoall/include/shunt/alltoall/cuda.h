#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include <shunt/alltoall/config.h>
#include <shunt/alltoall/ticket.h>
#include <shunt/core/view.h>
#include <shunt/pack/cuda.h>

namespace shunt {
class Transport;
}

namespace shunt::cuda {

class AllToAll;
namespace detail {
class Engine;
}

/// Receipt of a send half, to be handed to the matching receive half, as shunt::Sent. Move-only.
template <Half half>
class [[nodiscard]] Sent {
 public:
  Sent(Sent&& other) noexcept : owner_(std::exchange(other.owner_, nullptr)), call_(other.call_) {}
  Sent& operator=(Sent&& other) noexcept {
    owner_ = std::exchange(other.owner_, nullptr);
    call_ = other.call_;
    return *this;
  }
  Sent(const Sent&) = delete;
  Sent& operator=(const Sent&) = delete;

 private:
  friend class AllToAll;
  Sent(const AllToAll* owner, std::uint64_t call) noexcept : owner_(owner), call_(call) {}
  const AllToAll* owner_;
  std::uint64_t call_;
};

/// Tokens of a step, in device memory.
struct TokenInput {
  DeviceRows tokens;            ///< [T, H] of token_dtype
  std::int64_t num_tokens = 0;  ///< T <= max_tokens: what the host knows of; grids are made for so many
  const void* scales =
      nullptr;  ///< [T, ceil(H / scale_block)] dense, for tokens that are already fp8 with scales
  /// Where not null, read by the kernels: only the first *live_tokens (0 to T) count. So one captured graph serves steps
  /// of any size up to T.
  const std::int32_t* live_tokens = nullptr;
};

/// Expert ids of a step, in device memory: [T, K] with T as in TokenInput.
struct ExpertIds {
  const void* data = nullptr;   ///< int32 or int64; -1 skips
  bool wide = false;            ///< They are int64
  std::int64_t row_stride = 0;  ///< Elements from one token to the next; 0: K
};

/// Weights of a step, in device memory: [T, K].
struct Weights {
  const float* data = nullptr;
  std::int64_t row_stride = 0;  ///< Elements from one token to the next; 0: K
};

/// Rows of one rank after dispatch: device memory, the same addresses in every step (until a rank is masked). What they
/// contain is there once the stream has passed dispatch_recv, and stays until it reaches this rank's combine_send. The
/// host knows bounds only; counts stay on the device, as grouped GEMMs take them.
struct Received {
  DeviceRows rows;  ///< delivery rows: [max_rows, H] of the payload dtype, expert-major. data null for views.
  const void* scales = nullptr;  ///< [max_rows, ceil(H / scale_block)] dense; null without scales
  const void* const* row_pointers =
      nullptr;  ///< delivery view: [max_rows], null for padding rows below starts[L]
  const void* const* scale_pointers = nullptr;    ///< The same for scales
  const std::int32_t* counts = nullptr;           ///< [L] rows of each local expert that carry tokens
  const std::int32_t* starts = nullptr;           ///< [L + 1] first row of each local expert; starts[L] = W
  const std::int32_t* counts_by_group = nullptr;  ///< [L, G]; only with counts_by_group
  const std::int32_t* num_rows = nullptr;         ///< [1] sum of counts
  std::int64_t max_rows = 0;                      ///< Bound of W
};

/// What the shared config does not say.
struct AllToAllOptions {
  LaunchLimit
      limit;  ///< Of every kernel. What waits for peers is one block, and holds no SM between the halves.
  bool expert_output = true;  ///< Whether expert_output() has memory; results may lie anywhere
};

/// shunt::AllToAll on GPUs: the same config, the same four calls in the same order, the same bits. Every call puts kernels
/// on `stream` and returns; nothing is allocated, copied to the host or waited for, so a step can be captured in a CUDA
/// graph and replayed: the number of the step lies in device memory.
/// How:       each token is written (quantised once) straight to every rank that has experts of it; each result straight
///            back to the tokens' ranks. Where peers cannot be stored to, the net's put carries the same bytes.
/// Config:    movement and path must be automatic; presum, check_messages, check_replicas and record_waits are refused.
/// Order:     the calls of one step may use different streams, if the caller orders them by events. Calls of several
///            objects may be in flight, but on one GPU a rank's wait must not sit in front of what its peer waits for.
/// Graphs:    every rank calls cudaGraphUpload and synchronises before any rank launches its graph for the first time:
///            else the first launch uploads, and may wait for a peer's kernel that waits for this rank.
/// Sharing:   ranks that share a GPU need streams of their own, made with cudaStreamNonBlocking (the default stream and
///            those that wait for it would wait for peers), and a hardware queue for each where they are threads
///            (CUDA_DEVICE_MAX_CONNECTIONS). What waits for the whole device must not be called while a peer's kernel may
///            wait for this rank: objects are made and destroyed, device and page-locked memory is allocated and freed
///            while no step runs on any of them; kernels of the caller are loaded before the first step, by a first
///            launch or by CUDA_MODULE_LOADING=EAGER before CUDA starts. Those of this library are.
/// Ownership: borrows `transport`, which must outlive this, and the caller's memory until the stream has passed the call.
/// Threads:   calls on one object must not overlap; the device of the transport is the current one of the calling thread.
/// Errors:    what the host can see is thrown by the call: invalid_argument, invalid_state; nothing was launched then. What
///            kernels find they write to memory that the host sees, and check() (which every call does first) throws:
///            timeout, naming rank, peer and phase: the kernels that follow do nothing, the object is dead;
///            invalid_argument (an id outside [-1, E) or twice in a token, live_tokens outside [0, T)), and overflow: the
///            step was void on every rank (its rows and `out` untouched) and the object goes on;
///            peer_masked with on_peer_loss = mask, see check().
class AllToAll {
 public:
  /// Collective, and returns when every rank can begin. As shunt::AllToAll. Symmetric memory comes from `transport`, which
  /// must have device_memory.
  /// Errors: also unavailable where this build has no CUDA or the transport no device memory.
  AllToAll(Transport& transport, const AllToAllConfig& config, const AllToAllOptions& options = {});
  /// The same on an engine of the caller's: another net, or the emulator of the tests. See src/alltoall/cuda/engine.h.
  AllToAll(Transport& transport, const AllToAllConfig& config, const AllToAllOptions& options,
           std::unique_ptr<detail::Engine> engine);
  ~AllToAll();  ///< Local. The caller's streams must have passed every call.
  AllToAll(const AllToAll&) = delete;
  AllToAll& operator=(const AllToAll&) = delete;

  [[nodiscard]] const AllToAllConfig& config() const noexcept;

  /// Rows [M, H] that are sent from where they lie; tokens elsewhere are copied once. Needed only where peers cannot be
  /// stored to, else without memory: data is null and tokens are sent from anywhere.
  [[nodiscard]] DeviceRows token_buffer() const noexcept;

  /// Starts moving tokens [T, H] to their experts. T is free per group and may be 0; the ranks of a group pass the same
  /// tokens and ids. All of it must stay untouched until the stream has passed this call.
  Sent<Half::dispatch> dispatch_send(const TokenInput& input, const ExpertIds& ids, Stream stream);
  /// Waits (one block, on the device) for every source, then places the rows. Returns received().
  Received dispatch_recv(Sent<Half::dispatch>&& sent, Stream stream);
  /// What dispatch_recv returns, before any step: for capture and for set-up of the experts.
  [[nodiscard]] Received received() const noexcept;

  /// Rows [max_rows, H] of expert_dtype for the experts to write to; data is null where options say so.
  [[nodiscard]] DeviceRows expert_output() const noexcept;
  /// Sends the expert results back, row i for row i of Received: from expert_output() or from anywhere (which costs a copy
  /// where peers cannot be stored to). Padding rows are not read.
  Sent<Half::combine> combine_send(const DeviceRows& results, Stream stream);
  /// out [T, H] of out_dtype = weighted sums, as shunt::AllToAll::combine_recv, over the live tokens of this step; T as in
  /// dispatch_send. With on_peer_loss = mask `accumulate` is refused: a step that is repeated would add twice.
  void combine_recv(Sent<Half::combine>&& sent, const Weights& weights, const DeviceRows& out, Stream stream,
                    bool accumulate = false);

  /// Throws what the kernels have found so far; reads a few words that they write to memory of the host. To be sure about
  /// a step, synchronise its stream first. A call that throws has launched nothing and is made again; the calls of a void
  /// step are all made as ever (they move nothing, and keep the ranks in step).
  /// With on_peer_loss = mask a timeout is not the end: collective among the survivors, it waits for the device (twice the
  /// deadline at most, then it throws timeout and the object is dead), agrees with them who is left (through the
  /// transport), moves to new memory and throws peer_masked. The old memory is given back only then, since a rank that
  /// was left out may still write there: for a moment there must be room for both. The steps up to
  /// steps_completed() stand on every rank, and the one after it is to be repeated from dispatch_send. received() and
  /// expert_output() have moved then, and graphs must be captured anew.
  void check();

  /// Steps since construction that are complete on every rank, as known after check(); with on_peer_loss = mask only,
  /// else 0.
  [[nodiscard]] std::int64_t steps_completed() const noexcept;
  /// [R] 1 for every rank that takes part; 0 for those masked.
  [[nodiscard]] View1<const std::uint8_t> alive() const noexcept;
  [[nodiscard]] std::int64_t max_rows() const noexcept;         ///< Upper bound of W on this rank
  [[nodiscard]] std::int64_t workspace_bytes() const noexcept;  ///< Symmetric memory held by this rank

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Bytes of symmetric memory that one rank of R needs, without allocating. `load_store`: whether peers can be stored to.
/// Errors: invalid_argument as the constructor.
[[nodiscard]] std::int64_t alltoall_workspace_bytes(const AllToAllConfig& config, std::int32_t num_ranks,
                                                    const AllToAllOptions& options = {},
                                                    bool load_store = true);

}  // namespace shunt::cuda

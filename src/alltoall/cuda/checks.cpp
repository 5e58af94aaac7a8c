// What callers may pass, and what kernels have found, as sentences. Apart from the kernels, so that nvcc reads no fmt.
#include <cstdint>
#include <string>

#include <fmt/format.h>

#include "places.h"

namespace shunt::cuda::detail {
namespace {

/// Selections, experts' and ranks', that one plan numbers; as pack has it.
constexpr std::int64_t kMaxSelections = std::int64_t{1} << 30;

[[noreturn]] void refuse_config(const std::string& what) {
  throw Error(Errc::invalid_argument, "AllToAll config on GPUs: " + what);
}

[[noreturn]] void refuse(std::int32_t rank, const char* call, const std::string& what) {
  throw Error(Errc::invalid_argument, fmt::format("rank {}: {}: {}", rank, call, what));
}

void check_rows(std::int32_t rank, const char* call, const char* name, const DeviceRows& rows,
                std::int64_t hidden, DType dtype) {
  const std::int64_t bytes = dtype_bytes(dtype);
  if (rows.data == nullptr) refuse(rank, call, fmt::format("{}.data is null", name));
  if (rows.dtype != dtype)
    refuse(rank, call,
           fmt::format("{} are {}; the config says {}", name, dtype_name(rows.dtype), dtype_name(dtype)));
  if (reinterpret_cast<std::uintptr_t>(rows.data) % static_cast<std::uintptr_t>(bytes) != 0)
    refuse(
        rank, call,
        fmt::format("{} are at {}; elements of {} bytes lie at multiples of that", name, rows.data, bytes));
  if (rows.stride_bytes < hidden * bytes || rows.stride_bytes % bytes != 0)
    refuse(
        rank, call,
        fmt::format("the rows of {} are {} bytes apart; {} elements of {} need a multiple of {} from {} on",
                    name, rows.stride_bytes, hidden, dtype_name(dtype), bytes, hidden * bytes));
}

const char* phase_of(const Finding& found) {
  return found.in_combine != 0 ? "combine" : "dispatch";
}

}  // namespace

void check_gpu_config(const AllToAllConfig& c, std::int32_t num_ranks) {
  if (c.movement != Movement::automatic)
    refuse_config("movement must be automatic; rows are always written by their source");
  if (c.path != Path::automatic)
    refuse_config("path must be automatic; every rank is reached directly or by the net's put");
  if (c.presum) refuse_config("presum is not available; results come back one row for each selection");
  if (c.check_messages) refuse_config("check_messages is not available; rows carry no checksum");
  if (c.check_replicas)
    refuse_config("check_replicas is not available; counts of results are compared, tokens are not");
  if (c.record_waits) refuse_config("record_waits is not available");
  if (c.max_tokens * c.top_k > kMaxSelections / 2)
    refuse_config(fmt::format("max_tokens {} of top-{} are more than the {} selections that one rank numbers",
                              c.max_tokens, c.top_k, kMaxSelections / 2));
  if (std::int64_t{c.num_experts} + num_ranks > INT32_MAX / 2)
    refuse_config(fmt::format("num_experts is {}; with {} ranks {} are allowed", c.num_experts, num_ranks,
                              INT32_MAX / 2 - num_ranks));
}

void check_tokens(const AllToAllConfig& c, std::int32_t rank, const TokenInput& input, const ExpertIds& ids) {
  constexpr const char* kCall = "dispatch_send";
  if (input.num_tokens < 0 || input.num_tokens > c.max_tokens)
    refuse(rank, kCall,
           fmt::format("{} tokens; allowed are 0 to max_tokens = {}", input.num_tokens, c.max_tokens));
  if (input.num_tokens == 0) return;
  check_rows(rank, kCall, "tokens", input.tokens, c.hidden, c.token_dtype);
  if (ids.data == nullptr) refuse(rank, kCall, "ids.data is null");
  const auto id_bytes = static_cast<std::uintptr_t>(ids.wide ? 8 : 4);
  if (reinterpret_cast<std::uintptr_t>(ids.data) % id_bytes != 0)
    refuse(rank, kCall, fmt::format("ids are at {}, no multiple of their {} bytes", ids.data, id_bytes));
  if (ids.row_stride != 0 && ids.row_stride < c.top_k)
    refuse(rank, kCall,
           fmt::format("rows of ids are {} apart, but {} long; allowed are 0 (dense) and {} on",
                       ids.row_stride, c.top_k, c.top_k));
  if (c.payload != c.token_dtype || c.scale == ScaleType::none) return;
  if (input.scales == nullptr) refuse(rank, kCall, "tokens are fp8 with block scales, but scales is null");
  const auto scale = static_cast<std::uintptr_t>(scale_bytes(c.scale));
  if (reinterpret_cast<std::uintptr_t>(input.scales) % scale != 0)
    refuse(rank, kCall, fmt::format("scales are at {}, no multiple of their {} bytes", input.scales, scale));
}

void check_results(const AllToAllConfig& c, std::int32_t rank, const DeviceRows& results, bool any_rows) {
  if (any_rows) check_rows(rank, "combine_send", "results", results, c.hidden, c.expert_dtype);
}

void check_sum(const AllToAllConfig& c, std::int32_t rank, const Weights& weights, const DeviceRows& out,
               std::int64_t num_tokens, bool accumulate) {
  constexpr const char* kCall = "combine_recv";
  if (accumulate && c.on_peer_loss == PeerLoss::mask)
    refuse(rank, kCall,
           "accumulate is not available with on_peer_loss = mask: a step that is repeated would add twice");
  if (num_tokens == 0) return;
  check_rows(rank, kCall, "out", out, c.hidden, c.out_dtype);
  if (weights.data == nullptr) refuse(rank, kCall, "weights.data is null");
  if (reinterpret_cast<std::uintptr_t>(weights.data) % sizeof(float) != 0)
    refuse(rank, kCall,
           fmt::format("weights are at {}, no multiple of 4", static_cast<const void*>(weights.data)));
  if (weights.row_stride != 0 && weights.row_stride < c.top_k)
    refuse(rank, kCall,
           fmt::format("rows of weights are {} apart, but {} long; allowed are 0 (dense) and {} on",
                       weights.row_stride, c.top_k, c.top_k));
}

Error error_of(const AllToAllConfig& c, std::int32_t rank, const Finding& f) {
  const auto step = f.epoch;
  const auto void_step = [&](const std::string& what) {
    return Error(
        Errc::invalid_argument,
        fmt::format("rank {}: dispatch step {}: {}; the step is void on every rank", rank, step, what));
  };
  switch (static_cast<Trouble>(f.trouble)) {
    case Trouble::id_outside:
      return void_step(fmt::format("rank {} brought token {}, k {}: expert id {} is outside [-1, {}]", f.peer,
                                   f.a / c.top_k, f.a % c.top_k, f.b, c.num_experts - 1));
    case Trouble::id_twice:
      return void_step(fmt::format("rank {} brought token {}, k {}: expert {} is named twice by this token",
                                   f.peer, f.a / c.top_k, f.a % c.top_k, f.b));
    case Trouble::live_tokens:
      return void_step(
          fmt::format("rank {} brought live_tokens {}; allowed are 0 to the {} given", f.peer, f.b, f.a));
    case Trouble::overflow:
      return {Errc::overflow,
              fmt::format("rank {}: dispatch step {}: {} rows would arrive at rank {}, but max_recv_rows is "
                          "{}; the step is void on every rank",
                          rank, step, f.a, f.peer, c.max_recv_rows)};
    case Trouble::timeout:
      return {Errc::timeout,
              fmt::format("rank {}: timed out after {} ms waiting for rank {} in {}, step {}", rank,
                          c.deadline.count(), f.peer, phase_of(f), step),
              f.peer};
    case Trouble::accused:
      if (f.peer == f.a)
        return {Errc::peer_lost,
                fmt::format("rank {}: rank {} has found its own part wrong and gone, as it says itself; it "
                            "was waited for in {}, step {}",
                            rank, f.peer, phase_of(f), step),
                f.peer};
      return {Errc::peer_lost,
              f.peer == rank
                  ? fmt::format("rank {}: rank {} gave up on this rank while it was in {}, step {}", rank,
                                f.a, phase_of(f), step)
                  : fmt::format("rank {}: lost rank {} (rank {} gave up on it) while waiting in {}, step {}",
                                rank, f.peer, f.a, phase_of(f), step),
              f.peer};
    case Trouble::other_replicas:
      return {Errc::invalid_argument,
              fmt::format("rank {}: combine step {}: this rank's tokens ask rank {} for {} results, and {} "
                          "came for its group (dp_size {}): the members brought different tokens",
                          rank, step, f.peer, f.a, f.b, c.dp_size)};
    case Trouble::none:
      break;
  }
  return {Errc::internal, fmt::format("rank {}: kernels wrote status {} in step {}", rank, f.trouble, step)};
}

}  // namespace shunt::cuda::detail

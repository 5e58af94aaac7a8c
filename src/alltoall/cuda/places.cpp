#include "places.h"

#include <algorithm>

#include <fmt/format.h>

#include <shunt/layout/slots.h>
#include <shunt/transport/transport.h>

#include "../plan.h"
#include "net.h"
#include "pack/cuda/plan_sizes.h"

namespace shunt::cuda {
namespace detail {
namespace {

/// What tensor-memory copies and 16-byte accesses want of rows and buffers.
constexpr std::int64_t kRowAlignment = 16;
constexpr std::int64_t kPartAlignment = 128;

std::int64_t most_shared(const AllToAllConfig& c) {
  return c.on_peer_loss == PeerLoss::mask ? c.max_tokens : token_share(c.max_tokens, c.dp_size, 0).end;
}

/// What a plan of the share needs at most: one of fewer tokens may have more units than one of all.
std::int64_t most_plan_bytes(const AllToAllConfig& c, std::int32_t num_ranks, std::int64_t share) {
  const std::int64_t warps = (share * 2 * c.top_k + device::kWarpSize - 1) / device::kWarpSize;
  const std::int64_t units = std::clamp<std::int64_t>(warps, 1, kMaxUnits);
  return round_up(4 * units * (std::int64_t{c.num_experts} + num_ranks) + 4 * units + 4, 16);
}

class Layout {
 public:
  std::int64_t place(std::int64_t bytes) {
    const std::int64_t at = next_;
    next_ = round_up(next_ + bytes, kPartAlignment);
    return at;
  }
  [[nodiscard]] std::int64_t end() const { return next_; }

 private:
  std::int64_t next_ = 0;
};

void size_rows(Places& p, const AllToAllConfig& c, std::int32_t num_ranks) {
  const std::int32_t most_experts = ExpertPartition{c.num_experts, num_ranks}.max_count();
  const std::int64_t num_scales = (c.hidden + c.scale_block - 1) / c.scale_block;
  p.row_bytes = c.hidden * dtype_bytes(c.payload);
  p.row_scale_bytes = num_scales * scale_bytes(c.scale);
  p.scale_at = round_up(p.row_bytes, kRowAlignment);
  p.slot_stride = p.scale_at + round_up(p.row_scale_bytes, kRowAlignment);
  p.row_stride = p.scale_at;
  p.result_bytes = c.hidden * dtype_bytes(c.expert_dtype);
  p.result_stride = round_up(p.result_bytes, kRowAlignment);
  p.share = most_shared(c);
  p.entries = p.share * std::min<std::int64_t>(c.top_k, most_experts);
  p.counts_at = sizeof(Announcement);
  p.entry_at = round_up(p.counts_at + 4 * (std::int64_t{num_ranks} + most_experts), kRowAlignment);
  p.announce_stride =
      round_up(p.entry_at + p.entries * static_cast<std::int64_t>(sizeof(Entry)), kPartAlignment);
  const RowBoundInput in{.max_tokens = c.max_tokens,
                         .num_groups = num_ranks / c.dp_size,
                         .top_k = c.top_k,
                         .local_experts = most_experts};
  const std::int64_t worst = max_arriving_rows(in);
  p.max_arriving = c.max_recv_rows >= 0 ? std::min(c.max_recv_rows, worst) : worst;
  p.bounded = p.max_arriving < worst;
  p.max_rows = workspace_rows(slot_layout(c, num_ranks), in, p.max_arriving);
}

}  // namespace

Places plan_places(const AllToAllConfig& c, std::int32_t num_ranks, bool load_store, bool expert_output) {
  Places p;
  size_rows(p, c, num_ranks);
  const std::int64_t ranks = num_ranks;
  const std::int64_t most_experts = ExpertPartition{c.num_experts, num_ranks}.max_count();
  const std::int64_t keys = c.num_experts + ranks;
  const bool view = c.delivery == Delivery::view;
  const auto returns = static_cast<std::int64_t>(sizeof(ReturnHeader));
  Layout layout;
  p.signals_at = layout.place(kSignalKinds * ranks * kSignalWordStride);
  p.accusations_at = layout.place(ranks * 16);
  p.return_headers_at = layout.place(ranks * returns);
  p.announcements_at = layout.place(ranks * p.announce_stride);
  p.landing_at = layout.place(ranks * p.share * p.slot_stride);
  p.returns_at = layout.place(c.max_tokens * c.top_k * p.result_stride);
  if (!load_store) {
    p.out_accusation_at = layout.place(16);
    p.out_headers_at = layout.place(ranks * returns);
    p.out_announcements_at = layout.place(ranks * p.announce_stride);
    p.staging_at = layout.place(p.share * p.slot_stride);
  }
  p.state_at = layout.place(sizeof(State));
  p.bases_at = layout.place(ranks * 8);
  p.alive_at = layout.place(ranks);
  p.plan_ids_at = layout.place(p.share * 2 * c.top_k * 4);
  p.plan_counts_at = layout.place(keys * 4);
  p.plan_starts_at = layout.place((keys + 1) * 4);
  p.plan_positions_at = layout.place(p.share * 2 * c.top_k * 4);
  p.plan_selections_at = layout.place(p.share * 2 * c.top_k * 4);
  p.plan_status_at = layout.place(sizeof(PlanStatus));
  p.plan_workspace_at = layout.place(most_plan_bytes(c, num_ranks, p.share));
  p.return_positions_at = layout.place(c.max_tokens * c.top_k * 4);
  if (c.dp_size > 1) p.selected_at = layout.place(ranks * 4);
  p.cells_at = layout.place(ranks * most_experts * 4);
  p.firsts_at = layout.place(ranks * most_experts * 4);
  p.compact_at = layout.place(most_experts * 4);
  if (!load_store) p.expected_at = layout.place(2 * ranks * 8);
  p.group_rows_at = layout.place(ranks / c.dp_size * 4);
  p.arrivals_at = layout.place(p.max_arriving * static_cast<std::int64_t>(sizeof(Arrival)));
  p.counts_out_at = layout.place(most_experts * 4);
  p.starts_out_at = layout.place((most_experts + 1) * 4);
  if (c.counts_by_group) p.by_group_at = layout.place(most_experts * (ranks / c.dp_size) * 4);
  p.rows_at = layout.place(view ? 0 : p.max_rows * p.row_stride);
  p.scales_at = layout.place(view ? 0 : p.max_rows * p.row_scale_bytes);
  p.row_pointers_at = layout.place(view ? p.max_rows * 8 : 0);
  p.scale_pointers_at = layout.place(view && c.scale != ScaleType::none ? p.max_rows * 8 : 0);
  p.output_at = layout.place(expert_output || !load_store ? p.max_rows * p.result_stride : 0);
  p.total_bytes = layout.end();
  return p;
}

Frame make_frame(const AllToAllConfig& c, const Places& places, std::int32_t num_ranks, std::int32_t rank) {
  Frame f;
  f.at = places;
  f.partition = {c.num_experts, num_ranks};
  f.rank = rank;
  f.num_ranks = num_ranks;
  f.group_size = c.dp_size;
  f.members = c.dp_size;
  f.member = rank % c.dp_size;
  f.top_k = c.top_k;
  f.most_experts = f.partition.max_count();
  f.alignment = static_cast<std::int32_t>(c.alignment);
  f.rows_per_expert = slot_layout(c, num_ranks).rows_per_expert;
  f.hidden = c.hidden;
  f.scale_block = c.scale_block;
  f.token_dtype = c.token_dtype;
  f.payload = c.payload;
  f.expert_dtype = c.expert_dtype;
  f.out_dtype = c.out_dtype;
  f.scale = c.scale;
  f.padding = c.padding;
  f.delivery = c.delivery;
  f.by_group = c.counts_by_group;
  f.masking = c.on_peer_loss == PeerLoss::mask;
  f.deadline_ns = static_cast<std::uint64_t>(std::chrono::nanoseconds(c.deadline).count());
  return f;
}

}  // namespace detail

std::int64_t alltoall_workspace_bytes(const AllToAllConfig& config, std::int32_t num_ranks,
                                      const AllToAllOptions& options, bool load_store) {
  if (num_ranks < 1)
    throw Error(Errc::invalid_argument, fmt::format("{} ranks; at least 1 is needed", num_ranks));
  check_config(config, num_ranks);
  detail::check_gpu_config(config, num_ranks);
  return detail::plan_places(config, num_ranks, load_store, options.expert_output).total_bytes;
}

}  // namespace shunt::cuda

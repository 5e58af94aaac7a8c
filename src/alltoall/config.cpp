#include <shunt/alltoall/config.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/transport/transport.h>

#include "plan.h"

namespace shunt {
namespace {

constexpr std::int64_t kPart = 4096;  // Parts start on pages, so that a part can be placed or advised alone.

[[noreturn]] void refuse(const std::string& what) {
  throw Error(Errc::invalid_argument, "AllToAll config: " + what);
}

bool is_result_dtype(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

void check_dtypes(const AllToAllConfig& c) {
  if (!is_result_dtype(c.expert_dtype))
    refuse(fmt::format("expert_dtype is {}; allowed are float32, float16, bfloat16",
                       dtype_name(c.expert_dtype)));
  if (!is_result_dtype(c.out_dtype))
    refuse(fmt::format("out_dtype is {}; allowed are float32, float16, bfloat16", dtype_name(c.out_dtype)));
  if (c.scale_block < 1) refuse(fmt::format("scale_block is {}; it must be at least 1", c.scale_block));
  if (c.scale != ScaleType::none && !is_fp8(c.payload))
    refuse(fmt::format("scales belong to fp8 rows, but payload is {}", dtype_name(c.payload)));
  if (c.payload == c.token_dtype) return;
  if (!is_fp8(c.payload) || is_fp8(c.token_dtype))
    refuse(fmt::format(
        "payload {} differs from token_dtype {}; dispatch only quantises float32, float16 or bfloat16 "
        "tokens to fp8",
        dtype_name(c.payload), dtype_name(c.token_dtype)));
  if (c.scale == ScaleType::none)
    refuse(fmt::format("quantising {} to {} needs scales (scale = f32 or ue8m0)", dtype_name(c.token_dtype),
                       dtype_name(c.payload)));
  if (c.delivery == Delivery::view)
    refuse("a view hands out the tokens as they lie, so it cannot quantise; use delivery rows");
}

/// Rows and bytes may be far beyond 64 bits before anything says no, so they are estimated in floating point.
void check_row_bound(const AllToAllConfig& c, std::int32_t num_ranks) {
  constexpr double kMostRows = std::numeric_limits<std::int32_t>::max();
  constexpr double kMostBytes = 1e18;
  const double groups = static_cast<double>(num_ranks) / c.dp_size;
  const double experts = std::ceil(static_cast<double>(c.num_experts) / num_ranks);
  const auto alignment = static_cast<double>(c.alignment);
  double arriving = static_cast<double>(c.max_tokens) * std::min<double>(c.top_k, experts) * groups;
  if (c.max_recv_rows >= 0) arriving = std::min(arriving, static_cast<double>(c.max_recv_rows));
  const bool padded = c.layout == RowLayout::padded;
  const double rows = padded ? experts * (groups * static_cast<double>(c.max_tokens) + alignment - 1)
                             : arriving + std::min(arriving, experts) * (alignment - 1);
  if (rows >= kMostRows)
    refuse(fmt::format(
        "max_tokens {} with top_k {} over {} ranks, alignment {}, may need {:.0f} rows at a rank; positions "
        "are 31 bits wide (reduce max_tokens or the alignment{})",
        c.max_tokens, c.top_k, num_ranks, c.alignment, rows,
        padded ? ", or use the packed layout" : ", or set max_recv_rows"));
  if ((rows + static_cast<double>(c.max_tokens)) * static_cast<double>(c.hidden) * 8 >= kMostBytes)
    refuse(fmt::format("{:.0f} rows of {} elements are more than any machine holds", rows, c.hidden));
}

}  // namespace

void check_config(const AllToAllConfig& c, std::int32_t num_ranks) {
  constexpr auto kIntMax = std::numeric_limits<std::int32_t>::max();
  if (c.max_tokens < 0 || c.max_tokens > kIntMax)
    refuse(fmt::format("max_tokens is {}; allowed are 0 to {}", c.max_tokens, kIntMax));
  if (c.num_experts < 1) refuse(fmt::format("num_experts is {}; it must be at least 1", c.num_experts));
  if (c.top_k < 1 || c.top_k > c.num_experts)
    refuse(fmt::format("top_k is {}; allowed are 1 to num_experts = {}", c.top_k, c.num_experts));
  if (c.hidden < 1 || c.hidden > kIntMax)
    refuse(fmt::format("hidden is {}; allowed are 1 to {}", c.hidden, kIntMax));
  if (c.dp_size < 1 || num_ranks % c.dp_size != 0)
    refuse(fmt::format("dp_size is {}; it must divide the {} ranks", c.dp_size, num_ranks));
  if (c.alignment < 1 || c.alignment > (1 << 20))
    refuse(fmt::format("alignment is {} rows; allowed are 1 to {}", c.alignment, 1 << 20));
  if (c.max_recv_rows < -1)
    refuse(fmt::format("max_recv_rows is {}; allowed are 0 and more, or -1 for the worst case",
                       c.max_recv_rows));
  if (c.max_recv_rows >= 0 && c.layout == RowLayout::padded)
    refuse("max_recv_rows needs the packed layout; padded reserves the worst case for every expert");
  if (c.deadline.count() <= 0)
    refuse(fmt::format("deadline is {} ms; it must be positive", c.deadline.count()));
  if (c.presum && c.dp_size != 1)
    refuse(fmt::format("presum with dp_size {}; partial sums need dp_size 1", c.dp_size));
  check_dtypes(c);
  check_row_bound(c, num_ranks);
}

SlotLayout slot_layout(const AllToAllConfig& c, std::int32_t num_ranks) {
  SlotLayout slots{.layout = c.layout, .alignment = c.alignment, .rows_per_expert = 0};
  if (c.layout == RowLayout::padded)
    slots.rows_per_expert = round_up(num_ranks / c.dp_size * c.max_tokens, c.alignment);
  return slots;
}

MessageLayout message_layout(const BufferPlan& plan, bool presum, std::int64_t rows,
                             std::int64_t entries) noexcept {
  constexpr std::int64_t kRowAlignment = 64;
  MessageLayout layout;
  layout.term_at = plan.landing_entry_at + entries * static_cast<std::int64_t>(sizeof(Entry));
  layout.bytes = layout.term_at + (presum ? entries * static_cast<std::int64_t>(sizeof(Term)) : 0);
  layout.row_at = round_up(layout.bytes, kRowAlignment);
  layout.scale_at = round_up(layout.row_at + rows * plan.row_bytes, kRowAlignment);
  const std::int64_t end = layout.scale_at + rows * plan.row_scale_bytes;
  layout.whole = rows > 0 && end <= kMostWhole;
  if (layout.whole) {
    layout.bytes = end;
  } else {
    layout.row_at = plan.landing_row_at;
    layout.scale_at = plan.landing_scale_at;
  }
  return layout;
}

std::int64_t rank_max_rows(const AllToAllConfig& c, std::int64_t max_arriving, std::int32_t num_ranks,
                           std::int32_t rank) {
  const RowBoundInput in{.max_tokens = c.max_tokens,
                         .num_groups = num_ranks / c.dp_size,
                         .top_k = c.top_k,
                         .local_experts = ExpertPartition{c.num_experts, num_ranks}.count(rank)};
  return workspace_rows(slot_layout(c, num_ranks), in, std::min(max_arriving, max_arriving_rows(in)));
}

namespace {

/// Tokens that one member may have to send. Where members can be lost, those left take over their share.
std::int64_t most_shared(const AllToAllConfig& c) {
  return c.on_peer_loss == PeerLoss::mask ? c.max_tokens : token_share(c.max_tokens, c.dp_size, 0).end;
}

/// Enough for all that a rank sends in a half at most sizes; beyond, the ring waits until everything in it has left.
constexpr std::int64_t kMostStaging = std::int64_t{16} << 20;

/// What a message to a landing rank consists of, and where it is put together.
void plan_messages(BufferPlan& p, const AllToAllConfig& c, std::int32_t num_ranks,
                   const Crossings& crossings) {
  const std::int64_t share = most_shared(c);
  const std::int64_t experts = std::min<std::int64_t>(
      c.num_experts,
      std::int64_t{ExpertPartition{c.num_experts, num_ranks}.max_count()} * crossings.max_covered());
  p.landing_entries = share * std::min<std::int64_t>(c.top_k, experts);
  p.landing_rows = share;
  p.landing_entry_at =
      round_up(static_cast<std::int64_t>(sizeof(LandingHeader)) + 4 * crossings.max_covered() +
                   (p.bounded ? 4 * std::int64_t{num_ranks} : 0),
               8);
  const auto entry_bytes = static_cast<std::int64_t>(sizeof(Entry) + (c.presum ? sizeof(Term) : 0));
  p.landing_row_at = round_up(p.landing_entry_at + p.landing_entries * entry_bytes, kSignalStride);
  p.landing_scale_at = round_up(p.landing_row_at + p.landing_rows * p.row_bytes, kSignalStride);
  p.landing_stride = round_up(p.landing_scale_at + p.landing_rows * p.row_scale_bytes, kSignalStride);
  const std::int64_t out = share * std::min<std::int64_t>(c.top_k, crossings.max_destinations()) *
                               (p.row_bytes + p.row_scale_bytes) +
                           crossings.max_destinations() * p.landing_row_at;
  const std::int64_t back = p.max_arriving * p.output_row_bytes +
                            crossings.max_slots() * static_cast<std::int64_t>(sizeof(ReturnHeader));
  // Twice, so that a half does not wait for its own puts: see Outbox::begin_half().
  p.staging_bytes = std::min(2 * std::max(out, back), kMostStaging);
  // The longest thing that must lie in one piece.
  p.staging_bytes = std::max({p.staging_bytes, p.landing_row_at, std::min(kMostWhole, p.landing_stride),
                              p.row_bytes, p.output_row_bytes});
}

}  // namespace

BufferPlan plan_buffers(const AllToAllConfig& c, std::int32_t num_ranks, const Crossings& crossings) {
  BufferPlan p;
  const std::int32_t most_experts = ExpertPartition{c.num_experts, num_ranks}.max_count();
  const std::int64_t num_scales = (c.hidden + c.scale_block - 1) / c.scale_block;
  p.quantise = c.payload != c.token_dtype;
  p.row_bytes = c.hidden * dtype_bytes(c.payload);
  p.row_scale_bytes = num_scales * scale_bytes(c.scale);
  p.output_row_bytes = c.hidden * dtype_bytes(c.expert_dtype);

  const std::int64_t worst = max_arriving_rows({.max_tokens = c.max_tokens,
                                                .num_groups = num_ranks / c.dp_size,
                                                .top_k = c.top_k,
                                                .local_experts = most_experts});
  p.bounded = c.max_recv_rows >= 0 && c.max_recv_rows < worst;
  p.max_arriving = p.bounded ? c.max_recv_rows : worst;

  const std::int64_t per_token = std::min<std::int64_t>(c.top_k, most_experts);
  const std::int64_t share = most_shared(c);
  const auto word = static_cast<std::int64_t>(sizeof(std::uint64_t));
  p.announce_header = word + (c.check_replicas ? word : 0) + (p.bounded ? round_up(num_ranks * 4, word) : 0);
  p.announce_stride = round_up(
      p.announce_header + share * per_token * static_cast<std::int64_t>(sizeof(Entry)), kSignalStride);
  p.position_stride = round_up(word + c.max_tokens * per_token * 4, kSignalStride);

  std::int64_t next = 0;
  const auto place = [&next](std::int64_t bytes) {
    const std::int64_t at = next;
    next = round_up(next + bytes, kPart);
    return at;
  };
  p.announce_offset = place(num_ranks * p.announce_stride);
  p.position_offset = place(num_ranks * p.position_stride);
  p.push_request_offset = place(num_ranks * kSignalStride);
  p.push_done_offset = place(num_ranks * kSignalStride);
  if (c.on_peer_loss == PeerLoss::mask) p.commit_offset = place(num_ranks * kSignalStride);
  p.parts.messages = next;

  p.token_offset = place(c.max_tokens * p.row_bytes);
  p.token_scale_offset = place(c.max_tokens * p.row_scale_bytes);
  p.parts.tokens = next - p.parts.messages;

  const std::int64_t rows = rank_max_rows(c, p.max_arriving, num_ranks, 0);
  const bool view = c.delivery == Delivery::view;
  const std::int64_t before_rows = next;
  p.row_offset = place(view ? 0 : rows * p.row_bytes);
  p.row_scale_offset = place(view ? 0 : rows * p.row_scale_bytes);
  p.parts.rows = next - before_rows;

  const std::int64_t before_outputs = next;
  p.output_offset = place(rows * p.output_row_bytes);
  p.parts.outputs = next - before_outputs;

  if (crossings.any()) {
    const std::int64_t before_network = next;
    plan_messages(p, c, num_ranks, crossings);
    p.landing_offset = place(crossings.max_slots() * p.landing_stride);
    p.begin_offset = place((num_ranks + 1) * word);
    p.published_offset = place(p.max_arriving * 4);
    if (c.check_messages)
      p.return_header_offset = place(num_ranks * static_cast<std::int64_t>(sizeof(ReturnHeader)));
    p.return_offset = place(c.max_tokens * c.top_k * p.output_row_bytes);
    p.staging_offset = place(p.staging_bytes);
    p.parts.network = next - before_network;
  }
  p.total_bytes = next;
  return p;
}

WorkspaceSize workspace_size(const AllToAllConfig& config, std::int32_t num_ranks,
                             std::span<const std::int32_t> node_of) {
  if (num_ranks < 1)
    throw Error(Errc::invalid_argument, fmt::format("{} ranks; at least 1 is needed", num_ranks));
  if (!node_of.empty() && node_of.size() != static_cast<std::size_t>(num_ranks))
    throw Error(Errc::invalid_argument,
                fmt::format("node_of names the nodes of {} ranks; there are {}", node_of.size(), num_ranks));
  check_config(config, num_ranks);
  return plan_buffers(config, num_ranks, Crossings(node_of, num_ranks, config.path)).parts;
}

}  // namespace shunt

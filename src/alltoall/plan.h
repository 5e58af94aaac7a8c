#pragma once

#include <cstdint>

#include <shunt/alltoall/config.h>

namespace shunt {

/// Where everything lies in the symmetric buffer of an AllToAll: offsets are the same on every rank, so sizes
/// are those of the rank with the most experts (rank 0).
struct BufferPlan {
  std::int64_t row_bytes = 0;         ///< One arriving row
  std::int64_t row_scale_bytes = 0;   ///< Its scales
  std::int64_t output_row_bytes = 0;  ///< One expert result
  std::int64_t max_arriving = 0;      ///< Bound of rows that carry tokens, any rank
  bool bounded = false;               ///< Whether max_recv_rows can be exceeded
  bool quantise = false;              ///< Whether dispatch changes the dtype

  /// Announcement from one source: signal word, header, entries.
  std::int64_t announce_header = 0;
  std::int64_t announce_stride = 0;
  /// Positions from one owner: signal word, one int32 for each entry of the receiver's group.
  std::int64_t position_stride = 0;

  std::int64_t announce_offset = 0;      ///< [R] slots, one per source
  std::int64_t position_offset = 0;      ///< [R] slots, one per owner
  std::int64_t push_request_offset = 0;  ///< [R] signal words, one per owner
  std::int64_t push_done_offset = 0;     ///< [R] signal words, one per source
  std::int64_t token_offset = 0;
  std::int64_t token_scale_offset = 0;
  std::int64_t row_offset = 0;
  std::int64_t row_scale_offset = 0;
  std::int64_t output_offset = 0;
  std::int64_t total_bytes = 0;

  WorkspaceSize parts;
};

/// From how many bytes on, in flight on the machine (one pair's bytes times the number of pairs), which way
/// of moving rows is the fastest. Equal on all ranks, as both ends of a pair choose by it.
struct MoveChoice {
  std::int64_t push_from = 0;    ///< Below, the owner pulls
  std::int64_t stream_from = 0;  ///< From here on with streaming stores, whoever moves
};

/// One selection, as announced to the expert's owner.
struct Entry {
  std::uint32_t token;         ///< Row of the source's token buffer
  std::uint32_t local_expert;  ///< Of the owner
};

/// Throws Errc::invalid_argument with the field, its value and its range.
void check_config(const AllToAllConfig& config, std::int32_t num_ranks);

/// `config` must have passed check_config.
[[nodiscard]] BufferPlan plan_buffers(const AllToAllConfig& config, std::int32_t num_ranks);

/// Rows of workspace of `rank` for that plan.
[[nodiscard]] std::int64_t rank_max_rows(const AllToAllConfig& config, const BufferPlan& plan,
                                         std::int32_t num_ranks, std::int32_t rank);

[[nodiscard]] SlotLayout slot_layout(const AllToAllConfig& config, std::int32_t num_ranks);

}  // namespace shunt

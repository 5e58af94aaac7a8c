#pragma once

#include <cstdint>

#include <shunt/alltoall/config.h>

#include "crossings.h"

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
  std::int64_t commit_offset = 0;        ///< [R] signal words, one per rank; with a mask only
  std::int64_t token_offset = 0;
  std::int64_t token_scale_offset = 0;
  std::int64_t row_offset = 0;
  std::int64_t row_scale_offset = 0;
  std::int64_t output_offset = 0;
  std::int64_t total_bytes = 0;

  // Only where something crosses to ranks whose memory cannot be loaded; else 0.
  std::int64_t landing_entries = 0;   ///< Most entries of one message
  std::int64_t landing_rows = 0;      ///< Most token rows of one message
  std::int64_t landing_entry_at = 0;  ///< In a landing slot, behind the header
  std::int64_t landing_row_at =
      0;  ///< Of messages that are too long to travel in one piece; see message_layout()
  std::int64_t landing_scale_at = 0;
  std::int64_t landing_stride = 0;
  std::int64_t staging_bytes = 0;     ///< Ring of messages and rows on their way out
  std::int64_t landing_offset = 0;    ///< [max_slots] slots
  std::int64_t begin_offset = 0;      ///< [R + 1] int64 position_begin, for the landing ranks of the home
  std::int64_t published_offset = 0;  ///< [max_arriving] int32 positions, likewise
  std::int64_t return_header_offset =
      0;  ///< [R] ReturnHeader, one per rank that returns results; check_messages only
  std::int64_t return_offset = 0;  ///< Results on their way home, output_row_bytes apart
  std::int64_t staging_offset = 0;

  WorkspaceSize parts;
};

/// In front of a message from a source to a landing rank. Behind it, in this order: the owner counts [covered] u32,
/// with max_recv_rows the counts for every rank [R] i32; then entries, terms, rows and scales, see message_layout().
struct LandingHeader {
  std::uint64_t checksum;     ///< Of everything else; 0 without check_messages
  std::uint64_t hash;         ///< Of the group's tokens and ids; 0 without check_replicas
  std::int64_t return_base;   ///< First row of the source's return area for these owners
  std::uint32_t num_rows;     ///< Distinct tokens
  std::uint32_t num_entries;  ///< Sum of the owner counts
};

/// Beside results that come back, with check_messages.
struct ReturnHeader {
  std::uint64_t checksum;  ///< Of the rows
  std::uint64_t num_rows;
};

/// Where the parts of a message lie in its landing slot; both ends find it from the counts.
struct MessageLayout {
  std::int64_t term_at = 0;  ///< Terms of partial sums, one for each entry; presum only
  std::int64_t row_at = 0;
  std::int64_t scale_at = 0;
  std::int64_t bytes = 0;  ///< Without rows and scales, unless `whole`
  bool whole = false;      ///< Rows and scales travel in the same put, close behind the entries
};

/// Goes with an entry where results are summed before they cross.
struct Term {
  std::uint32_t k;
  float weight;
};

/// Up to here one put of copied rows costs less than a put more.
inline constexpr std::int64_t kMostWhole = 64 << 10;

/// From how many bytes on, in flight on the machine (one pair's bytes times the number of pairs), which way
/// of moving rows is the fastest. Equal on all ranks, as both ends of a pair choose by it.
struct MoveChoice {
  std::int64_t push_from = 0;    ///< Below, the owner pulls
  std::int64_t stream_from = 0;  ///< From here on with streaming stores, whoever moves
};

/// One selection, as announced to the expert's owner.
struct Entry {
  std::uint32_t token;         ///< Row of the source's token buffer, or of the message that crossed
  std::uint32_t local_expert;  ///< Of the owner
};

/// Throws Errc::invalid_argument with the field, its value and its range.
void check_config(const AllToAllConfig& config, std::int32_t num_ranks);

/// `config` must have passed check_config.
[[nodiscard]] BufferPlan plan_buffers(const AllToAllConfig& config, std::int32_t num_ranks,
                                      const Crossings& crossings);

/// Both counts are within what the plan allows.
[[nodiscard]] MessageLayout message_layout(const BufferPlan& plan, bool presum, std::int64_t rows,
                                           std::int64_t entries) noexcept;

/// Rows of workspace of `rank` where its buffers hold `max_arriving` of them.
[[nodiscard]] std::int64_t rank_max_rows(const AllToAllConfig& config, std::int64_t max_arriving,
                                         std::int32_t num_ranks, std::int32_t rank);

[[nodiscard]] SlotLayout slot_layout(const AllToAllConfig& config, std::int32_t num_ranks);

}  // namespace shunt

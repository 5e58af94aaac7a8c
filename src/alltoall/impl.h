#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/layout/partition.h>
#include <shunt/layout/slots.h>
#include <shunt/pack/kernels.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

#include "plan.h"

namespace shunt {

/// Longest wait of the constructor, which config.deadline does not bound: peers may still be busy with their
/// own set-up.
inline constexpr std::chrono::milliseconds kSetupDeadline{60'000};

/// Sizes and offsets are std::int64_t; containers want std::size_t.
[[nodiscard]] inline std::size_t at(std::int64_t index) noexcept {
  return static_cast<std::size_t>(index);
}

/// State of one AllToAll. The protocol and why its buffers need no second copy: docs/architecture.md, "The
/// step".
struct AllToAll::Impl {
  enum class Stage : std::uint8_t { idle, dispatch_sent, dispatched, combine_sent, dead };

  Impl(Transport& transport_in, const AllToAllConfig& config_in);
  ~Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  template <class Id>
  void dispatch_send(const TokenInput& input, View2<const Id> ids);
  Received dispatch_recv();
  void copy_out(Received& received, MutableRows rows, void* scales) const;
  void combine_send(Rows results);
  void combine_recv(View2<const float> weights, MutableRows out, bool accumulate);
  void gather_wait_ns(Half half, View2<std::int64_t> out);

  /// Errc::invalid_state unless the object is in `wanted`.
  void expect_stage(Stage wanted, const char* call) const;
  /// Runs `body`; a timeout or lost peer in it makes the object dead.
  template <class Body>
  auto guarded(Body&& body);

  Transport& transport;
  AllToAllConfig config;
  World world;
  ExpertPartition partition;
  SlotLayout slots;
  BufferPlan plan;
  MoveChoice choice;
  const PackKernels& kernels;
  std::unique_ptr<Collectives> collectives;
  /// Symmetric memory, given back also when the constructor fails after it got it.
  struct Workspace : SymmetricBuffer {
    explicit Workspace(Transport& from) : transport(from) {}
    ~Workspace() { transport.release(*this); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    Transport& transport;
  } buffer;
  std::vector<std::byte*> peers;  ///< [R] base of every rank's buffer in this address space

  std::int32_t num_groups = 1;
  std::int32_t group = 0;
  std::int32_t member = 0;  ///< Of the group
  std::int32_t local_experts = 0;
  std::int64_t max_rows = 0;

  std::uint32_t epoch = 0;  ///< Of the step in progress or last finished; the first is 1
  Stage stage = Stage::idle;
  bool void_step =
      false;  ///< The last step ended in dispatch_recv; peers may still be reading what we announced

  // Source side, this step.
  std::int64_t num_tokens = 0;         ///< T of the group
  std::vector<std::int32_t> owner_of;  ///< [E]
  std::vector<std::int32_t> local_of;  ///< [E] index among the owner's experts
  std::vector<std::int32_t> owners;    ///< [M, K] owner of each selection, -1 skipped
  std::vector<std::int64_t> seen;      ///< [E] stamp of the last token that named the expert
  std::int64_t stamp = 0;
  std::vector<std::int32_t> selected;      ///< [R] entries of the whole group to each owner
  std::vector<std::int32_t> sent;          ///< [R] entries of my share to each owner
  std::vector<std::int32_t> sent_before;   ///< [R] entries of the members before me
  std::vector<std::int32_t> cursor;        ///< [R] scratch
  std::vector<const void*> sum_rows;       ///< [K] rows of the token being summed
  std::vector<const void*> next_sum_rows;  ///< [K] and of the one after it

  // Owner side, this step.
  std::vector<std::int32_t> arrived;     ///< [R] entries from each source
  std::vector<std::int64_t> counts;      ///< [L]
  std::vector<std::int64_t> starts;      ///< [L + 1]
  std::vector<std::int64_t> next_row;    ///< [L] scratch
  std::vector<std::int64_t> old_counts;  ///< [L] of the step before; padded views clear only what it left
  std::vector<std::int32_t> counts_by_group;  ///< [L, G]
  std::vector<std::int32_t> positions;        ///< Rows of all entries, source by source
  std::vector<std::int64_t> position_begin;   ///< [R + 1] where each source's positions start
  std::vector<const void*> row_pointers;
  std::vector<const void*> scale_pointers;

  std::vector<std::int64_t> dispatch_wait_ns;
  std::vector<std::int64_t> combine_wait_ns;
  StepTimes times;
  ByteCounters bytes;

 private:
  friend class AllToAll;

  [[nodiscard]] std::byte* announce_slot(std::int32_t holder, std::int32_t source) const noexcept {
    return peers[static_cast<std::size_t>(holder)] + plan.announce_offset + source * plan.announce_stride;
  }
  [[nodiscard]] std::byte* position_slot(std::int32_t holder, std::int32_t owner) const noexcept {
    return peers[static_cast<std::size_t>(holder)] + plan.position_offset + owner * plan.position_stride;
  }
  [[nodiscard]] std::uint64_t word(std::uint32_t low) const noexcept {
    return static_cast<std::uint64_t>(epoch) << 32 | low;
  }
  [[nodiscard]] Deadline deadline() const { return Clock::now() + config.deadline; }
  [[nodiscard]] std::int64_t now_ns() const;
  [[nodiscard]] std::int64_t in_flight(std::int64_t entries) const noexcept;
  [[nodiscard]] bool pushes(std::int64_t entries, std::int32_t source, std::int32_t owner) const noexcept;

  void compare_configs();
  void allocate();
  void choose_moves();
  void measure_moves();

  template <class Id>
  void check_ids(const TokenInput& input, std::int64_t tokens, View2<const Id> ids);
  template <class Id>
  [[noreturn]] void refuse_id(std::int64_t token, std::int64_t k, Id id) const;
  void check_tokens(const TokenInput& input, std::int64_t tokens, std::int64_t id_rows,
                    std::int64_t id_cols) const;
  template <class Id>
  void announce(View2<const Id> ids, const TokenInput& input);
  void stage_tokens(const TokenInput& input, TokenShare share);
  void settle_void_step();
  std::uint64_t replica_hash(const TokenInput& input) const;

  std::uint64_t wait(std::int64_t offset, std::uint64_t value, Deadline until, std::int32_t peer, Half half);
  void await_announcements(Deadline until);
  void check_overflow();
  void check_replica_hashes();
  [[noreturn]] void end_void_step(const Error& error);
  void place_rows();
  void move_rows(Deadline until);
  void pull_from(std::int32_t source, bool streaming);
  void request_push(std::int32_t source);
  void push_to(std::int32_t owner, Deadline until);
  void write_positions(std::int32_t receiver) const;
  void point_rows();
  void fill_padding();
};

}  // namespace shunt

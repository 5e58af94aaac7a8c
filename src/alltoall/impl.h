#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <shunt/alltoall/all_to_all.h>
#include <shunt/core/error.h>
#include <shunt/layout/partition.h>
#include <shunt/layout/slots.h>
#include <shunt/pack/kernels.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/membership.h>
#include <shunt/transport/transport.h>

#include "compare.h"
#include "crossings.h"
#include "plan.h"
#include "row_stream.h"

namespace shunt {

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
  std::vector<std::uint8_t> live;          ///< [R] 0 for ranks that were masked
  std::vector<std::int32_t> homes;         ///< [R], or empty: all ranks reach each other's memory
  std::unique_ptr<Membership> membership;  ///< With a mask
  std::vector<std::byte> old_out;  ///< [M, H] of out_dtype with a mask: what an accumulating step began with
  ExpertPartition partition;
  SlotLayout slots;
  Crossings crossings;
  std::chrono::milliseconds setup_deadline = kSetupDeadline;
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
  /// Before a loss that the step survived: rows that the caller still holds pointers to. Until the next dispatch_send.
  std::unique_ptr<Workspace> old_memory;
  std::vector<std::byte*>
      peers;  ///< [R] base of every rank's buffer in this address space, null across homes

  std::int32_t num_groups = 1;
  std::int32_t group = 0;
  std::int32_t member = 0;   ///< Of the group, among its live ranks
  std::int32_t members = 1;  ///< Live ranks of the group
  std::int32_t local_experts = 0;
  std::int64_t max_rows = 0;

  std::uint32_t epoch = 0;    ///< Of the step in progress or last finished; the first is 1
  std::int64_t returned = 0;  ///< Last step that this rank has finished; with a mask
  Stage stage = Stage::idle;
  std::optional<Error> unreported_loss;  ///< Found when its step was complete; the next one says so
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

  // What crosses to other homes, this step. `outbound` by destination, `inbound` the sources that land here.
  struct Outbound {
    std::int32_t landing = 0;
    std::int32_t slot = 0;         ///< Of ours among its landing slots
    std::int64_t rows = 0;         ///< Distinct tokens sent there
    std::int64_t entries = 0;      ///< Of my share
    std::int64_t results = 0;      ///< Rows that come back through it
    std::int64_t return_base = 0;  ///< Where they begin in the return area
  };
  std::vector<Outbound> outbound;
  std::vector<std::int32_t> inbound;
  std::vector<std::int64_t>
      landing_index;  ///< [R] landing slot of a source in another home, at its landing rank here
  std::vector<std::int32_t> outbound_of;  ///< [R] index into outbound for an owner in another home, else -1
  std::vector<std::int32_t>
      row_in_message;                     ///< [S] scratch: row of each token of the share, -1 where it stays
  std::vector<std::int64_t> return_base;  ///< [R] first row of each such owner's results in the return area
  Outbox outbox;
  std::vector<float> sum_weights;            ///< [K + outbound] with presum
  std::vector<std::int64_t> partial_cursor;  ///< [outbound] scratch
  /// Results on their way back to one source.
  struct ReturnStream {
    std::int64_t next_row = 0;
    std::int64_t rows = 0;
    std::uint64_t checksum = 0;
    bool few = false;  ///< All of it may go in one put
  };
  std::vector<ReturnStream> returning;  ///< [R]
  struct Part {
    std::uint32_t k;
    float weight;
    const void* row;
  };
  std::vector<Part> parts;               ///< [landing_entries] of one message, by token; with presum
  std::vector<std::int64_t> part_begin;  ///< [landing_rows + 1] scratch
  std::vector<std::int64_t> part_end;    ///< [landing_rows] scratch

  /// Where the entries and tokens of a source can be read, however they came here.
  struct Arrival {
    const std::byte* entries = nullptr;
    const std::byte* tokens = nullptr;
    const std::byte* scales = nullptr;
    const std::byte* counts = nullptr;  ///< [R] int32 with max_recv_rows
    std::uint64_t hash = 0;             ///< With check_replicas
  };
  std::vector<Arrival> arrivals;  ///< [R]

  // Owner side, this step.
  std::vector<std::int32_t> arrived;     ///< [R] entries from each source
  std::vector<std::int64_t> counts;      ///< [L]
  std::vector<std::int64_t> starts;      ///< [L + 1]
  std::vector<std::int64_t> next_row;    ///< [L] scratch
  std::vector<std::int64_t> old_counts;  ///< [L] of the step before; padded views clear only what it left
  std::vector<std::int32_t> counts_by_group;  ///< [L, G]
  /// Rows of all entries, source by source. Symmetric where landing ranks of the home read it.
  std::span<std::int32_t> positions;
  std::vector<std::int32_t> private_positions;
  std::vector<std::int64_t> position_begin;  ///< [R + 1] where each source's positions start
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
  [[nodiscard]] bool lives(std::int32_t rank) const noexcept {
    return live[static_cast<std::size_t>(rank)] != 0;
  }
  /// Goes on without the ranks that are lost: agrees, moves to new memory and leaves the object idle.
  /// Result: the last step that a survivor has returned from. Errors: as Membership::agree.
  std::int64_t recover(const Error& loss);
  [[nodiscard]] Agreement agree(const Error& loss);
  /// recover(), then Errc::peer_masked: the step must be repeated.
  [[noreturn]] void void_and_mask(const Error& loss);
  [[noreturn]] void throw_masked(const Error& loss, std::uint32_t step) const;
  void commit_step();
  void move_to_new_memory();
  [[nodiscard]] Deadline deadline() const { return Clock::now() + config.deadline; }
  /// For what comes through a third rank, which may itself wait until `until` before it can say who is missing.
  [[nodiscard]] Deadline relayed(Deadline until) const {
    return crossings.hierarchical() ? until + config.deadline / 2 : until;
  }
  [[nodiscard]] std::int64_t now_ns() const;
  [[nodiscard]] std::int64_t in_flight(std::int64_t entries) const noexcept;
  [[nodiscard]] bool pushes(std::int64_t entries, std::int32_t source, std::int32_t owner) const noexcept;

  void compare_configs();
  void find_homes();
  void count_members();
  void plan_and_allocate();
  void allocate_buffer();
  void allocate_state();
  void allocate_crossings();
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
  template <class Id>
  void send_across(View2<const Id> ids, const TokenInput& input, std::uint64_t hash, TokenShare share);
  template <class Id>
  void send_message(Outbound& to, View2<const Id> ids, const TokenInput& input, std::uint64_t hash,
                    TokenShare share);
  std::uint64_t copy_rows(std::byte* message, const MessageLayout& layout, TokenShare share,
                          std::uint64_t checksum);
  std::uint64_t send_rows(const Outbound& to, const MessageLayout& layout, TokenShare share,
                          std::uint64_t checksum);
  void stage_tokens(const TokenInput& input, TokenShare share);
  void settle_void_step();
  std::uint64_t replica_hash(const TokenInput& input) const;

  [[nodiscard]] const std::byte* landing_slot(std::int32_t landing, std::int32_t source) const;
  void check_message(std::int32_t source, std::int32_t announced);
  [[nodiscard]] bool plausible(const std::byte* slot, std::int32_t announced) const;
  void land_messages(Deadline until);
  void find_arrival(std::int32_t source);
  [[nodiscard]] std::uint64_t message_checksum(const std::byte* message, const MessageLayout& layout,
                                               std::int64_t entries, std::uint64_t checksum) const;
  void return_own_results();
  void return_home_results(Deadline until);
  void begin_return(ReturnStream& back, std::int32_t source);
  void return_results(ReturnStream& back, std::int32_t source, std::span<const std::int32_t> from, bool last);
  void return_partial_sums(std::int32_t source);
  void end_return(const ReturnStream& back, std::int32_t source, RowStream& stream);
  void await_returned(const Outbound& from, Deadline until);
  [[noreturn]] void refuse_results(std::int32_t from, std::int64_t expected, std::int64_t came);
  void look_up_partial_sums(std::int64_t token, std::vector<const void*>& rows);
  [[nodiscard]] std::int64_t results_for(std::int32_t source, std::int32_t owner, std::int64_t* begin) const;
  [[nodiscard]] const std::byte* result_row(std::int32_t owner, std::int64_t index) const;

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

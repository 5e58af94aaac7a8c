#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

namespace shunt::bench {

/// When one rank was busy with one iteration, nanoseconds of its steady clock. Both 0: it took no part, or its
/// time does not count.
struct Busy {
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
};

/// What checks found on one rank.
struct Found {
  std::int64_t checked = 0;
  std::int64_t wrong = 0;
  std::string first;  ///< Words for the first wrong one
};

/// Size of one measurement.
struct Shape {
  std::int64_t bytes = 0;     ///< Of one message; of a collective, what a rank sends or holds at its end
  std::int64_t messages = 1;  ///< In one iteration and direction
  std::int64_t piece = 0;     ///< Of a collective, for one peer
};

/// One operation by one method. All ranks make the same calls with the same shapes and sequence numbers, which
/// grow by one from iteration to iteration.
class Exercise {
 public:
  virtual ~Exercise() = default;
  /// Ranks that are not among them skip the iterations of a block.
  [[nodiscard]] virtual bool takes_part() const = 0;
  /// Writes what this iteration sends.
  virtual void fill(const Shape& shape, std::uint64_t sequence) = 0;
  /// Returns when every rank that takes part has filled.
  virtual void meet(std::uint64_t sequence) = 0;
  virtual Busy run(const Shape& shape, std::uint64_t sequence) = 0;
  /// Ends what run() left under way; what was sent may be written again.
  virtual void settle() = 0;
  virtual void check(const Shape& shape, std::uint64_t sequence, Found& found) = 0;
};

/// Symmetric memory and signals of the two ranks between which puts are measured. Collective.
class Pair {
 public:
  /// `region_bytes`: most bytes under way in one direction.
  Pair(Transport& transport, std::int32_t peer_of_zero, std::int64_t region_bytes,
       std::chrono::milliseconds deadline);

  enum Word : std::int64_t { kReady = 0, kData = 1, kAck = 2, kWords = 3 };
  [[nodiscard]] bool takes_part() const noexcept { return peer_ >= 0; }
  [[nodiscard]] bool first() const noexcept { return transport_.world().rank == 0; }
  [[nodiscard]] std::int32_t rank() const noexcept { return transport_.world().rank; }
  [[nodiscard]] std::int32_t peer() const noexcept { return peer_; }
  [[nodiscard]] std::int32_t world_size() const noexcept { return transport_.world().size; }
  [[nodiscard]] Transport& transport() noexcept { return transport_; }
  [[nodiscard]] const SymmetricBuffer& memory() const noexcept { return memory_; }
  [[nodiscard]] std::byte* outgoing() const noexcept { return memory_.local + kWords * kSignalStride; }
  [[nodiscard]] std::byte* incoming() const noexcept { return outgoing() + region_bytes_; }
  [[nodiscard]] std::int64_t incoming_offset() const noexcept {
    return kWords * kSignalStride + region_bytes_;
  }
  [[nodiscard]] std::int64_t region_bytes() const noexcept { return region_bytes_; }
  [[nodiscard]] Deadline deadline() const { return Clock::now() + deadline_; }
  /// Whether the pair reaches each other's memory.
  [[nodiscard]] bool load_store() const noexcept {
    return takes_part() && transport_.peer_pointer(memory_, peer_) != nullptr;
  }

  void signal(Word word, std::uint64_t value) {
    transport_.signal(memory_, peer_, word * kSignalStride, value);
  }
  void wait(Word word, std::uint64_t value, Deadline until, const char* phase) {
    static_cast<void>(transport_.wait_signal(memory_, word * kSignalStride, value, until,
                                             WaitSite{.phase = phase, .peer = peer_}));
  }
  /// Both call it; returns when the other one has.
  void meet(std::uint64_t sequence) {
    signal(kReady, sequence);
    wait(kReady, sequence, deadline(), "bench transport: ready");
  }

 private:
  Transport& transport_;
  std::int32_t peer_;
  std::int64_t region_bytes_;
  std::chrono::milliseconds deadline_;
  SymmetricBuffer memory_;
};

[[nodiscard]] std::int64_t bench_now_ns();

/// Compares `messages` of `bytes` each behind one another with what `sender` sent to `receiver`.
void check_messages(const std::byte* at, const Shape& shape, std::uint64_t sequence, std::int32_t sender,
                    std::int32_t receiver, Found& found);
/// Writes them.
void fill_messages(std::byte* to, const Shape& shape, std::uint64_t sequence, std::int32_t sender,
                   std::int32_t receiver);

/// Bytes that the alltoallv sends from one rank to another, for a mean of `piece`: a half, one or one and a
/// half of it, uneven in both directions.
[[nodiscard]] std::int64_t uneven_piece(std::int64_t piece, std::int32_t from, std::int32_t to);

/// "put_latency", "signal_latency", "put_bandwidth" or "put_bibandwidth" over the transport.
[[nodiscard]] std::unique_ptr<Exercise> make_pair_exercise(const std::string& op, Pair& pair);
/// Floor of the puts of ranks that share memory: rank 0 copies as many bytes between buffers of its own.
[[nodiscard]] std::unique_ptr<Exercise> make_memcpy_exercise(Pair& pair);
/// "barrier", "allgather", "alltoall" or "alltoallv"; `control` keeps the ranks together between the
/// iterations. `largest`: the largest shape of any.
[[nodiscard]] std::unique_ptr<Exercise> make_collective_exercise(const std::string& op, Transport& transport,
                                                                 Collectives& control, Collectives& measured,
                                                                 const Shape& largest,
                                                                 std::chrono::milliseconds deadline);

}  // namespace shunt::bench

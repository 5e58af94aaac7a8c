#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <shunt/bench/workload.h>
#include <shunt/layout/slots.h>
#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

namespace shunt::bench {

/// Parts of dispatch and combine that a method may report besides the phases.
enum class Inner : std::uint8_t {
  route,             ///< Which rank and expert each selection goes to, counts
  count_exchange,    ///< Counts to the peers, or waiting for theirs
  pack,              ///< Rows into send buffers
  exchange,          ///< Payload between ranks
  unpack,            ///< Rows from receive buffers to their expert
  place,             ///< Where arriving rows go
  combine_pack,      ///< Expert results into send buffers
  combine_exchange,  ///< Results between ranks, or waiting for them
  reduce,            ///< Weighted sums
  dispatch_send,     ///< On GPUs: the kernels of each half
  dispatch_recv,
  combine_send,
  combine_recv,
};
inline constexpr std::size_t kNumInner = 13;
[[nodiscard]] const char* inner_name(Inner inner) noexcept;

/// Nanoseconds of each inner phase in one iteration; -1 where the method has none such.
using InnerTimes = std::array<std::int64_t, kNumInner>;

/// Rows of one rank after dispatch, for the check: expert-major, by (expert, source group, token).
struct ArrivedRows {
  std::vector<const std::byte*> rows;  ///< [N]
  std::vector<const float*> scales;    ///< [N]; empty without scales
};

/// One way to do dispatch and combine, on one rank, bound to a workload. All calls are collective and come in
/// the order dispatch, touch, combine; between them the harness lets the ranks meet.
class Method {
 public:
  virtual ~Method() = default;
  virtual void dispatch() = 0;
  /// Reads each received row and writes an output row, y = x * scale * expert_factor(expert).
  virtual void touch() = 0;
  virtual void combine() = 0;

  /// Received rows between dispatch and combine. Floors that deliver nothing return an empty list.
  [[nodiscard]] virtual ArrivedRows arrived() const = 0;
  /// Combined tokens [T, H] of this rank's group, out_dtype; null for a method without a combine.
  [[nodiscard]] virtual const std::byte* combined() const = 0;
  /// A check of its own for floors, which deliver no rows; as Verifier::check_rows.
  [[nodiscard]] virtual std::string check_own() const { return {}; }
  /// Overwrites what earlier iterations left in every output, so that only new bytes can pass the check.
  /// Called between iterations, all ranks having met before and after.
  virtual void poison() = 0;
  /// The tokens that this rank brings to dispatch, where it reads them. Before every iteration, outside the
  /// times, the harness writes each line of them anew with the same bytes, as the layer before would have:
  /// tokens that nobody had written since the last step would still lie in the peers' caches. Empty for a
  /// floor that moves no tokens.
  [[nodiscard]] virtual std::span<std::byte> own_tokens() { return {}; }
  [[nodiscard]] const InnerTimes& inner_times() const noexcept { return inner_; }
  /// Begin and end of the phase just done, in nanoseconds of the steady clock, for a method that works in
  /// another process and measures there, or tidies up before it returns; {0, 0}: the harness's own stamps around the call count.
  struct Span {
    std::int64_t begin_ns = 0;
    std::int64_t end_ns = 0;
  };
  [[nodiscard]] virtual Span own_span() const noexcept { return {}; }
  /// Before the ranks meet for each phase, outside the times: what must be over when it begins.
  virtual void ready() {}
  /// Before the first and after the last iteration of a block, all ranks having met: a helper process may wait
  /// busily in between and must sleep outside.
  virtual void begin_block() {}
  virtual void end_block() {}
  /// Why this method cannot go on, for one whose work is done by another process. Its phases then return at
  /// once; the harness asks after each block and drops the method on every rank, and the others go on.
  struct Failure {
    std::string text;      ///< Names the rank; empty: nothing is wrong
    bool by_peer = false;  ///< Only what a failure on another rank led to, so that one explains more
  };
  [[nodiscard]] virtual Failure failure() const { return {}; }
  /// Bytes this rank has handed to the transport for ranks whose memory cannot be loaded, since construction; -1
  /// where the method does not count them.
  struct Crossed {
    std::int64_t rows = -1;      ///< Tokens and their scales in dispatch
    std::int64_t results = -1;   ///< Expert results, or partial sums, in combine
    std::int64_t messages = -1;  ///< Everything else of both
  };
  [[nodiscard]] virtual Crossed crossed() const { return {}; }
  /// What an iteration computes besides touch and sums.
  struct Work {
    std::string text;        ///< "128 x 512 x 7168, float32"; empty: nothing
    std::int64_t flops = 0;  ///< Of one rank in one iteration
  };
  [[nodiscard]] virtual Work work() const { return {}; }

 protected:
  Method() { inner_.fill(-1); }
  /// Adds the time since `start` to an inner phase and returns now.
  Clock::time_point mark(Inner inner, Clock::time_point start) noexcept {
    const Clock::time_point now = Clock::now();
    inner_[static_cast<std::size_t>(inner)] =
        std::chrono::duration_cast<std::chrono::nanoseconds>(now - start).count();
    return now;
  }
  InnerTimes inner_{};
};

/// What of a step a method does.
enum class MethodKind : std::uint8_t {
  rows,   ///< The whole step, rows delivered expert by expert in the owner's memory
  view,   ///< The whole step, rows left in the sources' memory
  floor,  ///< A bound, not a method: part of a step
};

/// What of a token crosses only once between ranks that cannot load each other's memory.
enum class CrossingPath : std::uint8_t {
  none,   ///< Not known, or not counted.
  ranks,  ///< A token crosses once to each rank that has experts of it.
  nodes,  ///< A token crosses once to each node that has experts of it.
};

/// Options that reach into a method, and what it must know of the world to size its memory.
struct MethodSettings {
  RowLayout layout = RowLayout::packed;
  std::int64_t alignment = 1;
  std::int64_t max_recv_rows = -1;
  std::chrono::milliseconds deadline{30'000};
  bool record_inner = false;  ///< Ask the method for inner phases even where they cost time
  /// [R] node of every rank where memory is loaded within nodes only; empty: all memory is.
  std::vector<std::int32_t> node_of = {};
};

/// Bytes of the buffers that the methods of a point share, per rank: only one method runs at a time. Methods
/// that want one buffer take the largest wish.
struct SharedSizes {
  std::int64_t collective = 0;  ///< Largest message of the collectives (symmetric, counted twice)
  std::int64_t region = 0;      ///< Symmetric, written by peers
  std::int64_t tokens = 0;      ///< Symmetric copy of the tokens
  std::int64_t pack = 0;        ///< Private, packed rows
  std::int64_t receive = 0;     ///< Private, as they came
  std::int64_t rows = 0;        ///< Private, expert by expert
  std::int64_t outputs = 0;     ///< Private, expert results
  [[nodiscard]] std::int64_t total() const noexcept {
    return 2 * collective + region + tokens + pack + receive + rows + outputs;
  }
};
[[nodiscard]] SharedSizes larger(const SharedSizes& a, const SharedSizes& b) noexcept;

class SharedMemory;

/// What a method is built from; all outlive it.
struct MethodContext {
  Transport& transport;
  const Workload& workload;
  const MethodSettings& settings;
  SharedMemory& memory;  ///< Buffers that the methods of a point share, since only one runs at a time
};

/// A method by name.
struct MethodSpec {
  std::string name{};     ///< "pack/exchange"
  std::string variant{};  ///< Several candidates of one name are compared and the best is reported
  std::string summary{};  ///< One line for --list
  MethodKind kind = MethodKind::rows;
  std::string unavailable{};  ///< Why this build or machine cannot run it; empty where it can
  /// Why this world cannot run it, looked at before anything is made; empty text where it can. Ranks may differ:
  /// what one cannot run, none does.
  std::function<std::string(const Transport&)> unsuited{};
  /// The same for what only a wish of its own in --methods overrides.
  std::function<std::string(const Transport&)> only_if_asked{};
  bool asked_for = false;  ///< Named in --methods
  /// Which bytes cross, for methods whose Method::crossed() counts them: the count must be right to the byte.
  CrossingPath crossing = CrossingPath::none;
  /// Results of a token are summed where its row landed and only the sum, rounded once more, crosses: one row of
  /// results for each row of tokens.
  bool presum = false;
  /// The same by a look that costs time, taken only once the method is wanted; empty where there is none.
  std::function<std::string()> look{};
  bool opens_sockets = false;  ///< Runs only if named, or with --peers
  bool has_dispatch = true;
  bool has_combine = true;
  bool touch_counts = true;        ///< Whether its touch has a time; else it only prepares the combine
  bool inner_phases_cost = false;  ///< Inner phases need settings.record_inner and a run of their own
  /// Symmetric memory of one rank that this method alone needs; empty for none.
  std::function<std::int64_t(const Workload&, const MethodSettings&)> own_bytes{};
  /// What it needs of the buffers that the methods of a point share; empty for the combined tokens alone.
  std::function<SharedSizes(const Workload&)> shared_sizes{};
  /// Bytes that all ranks move in one iteration, where that is far more than the payload; else empty.
  std::function<std::int64_t(const Workload&)> moved_bytes{};
  std::function<std::unique_ptr<Method>(const MethodContext&)> make{};
};

/// Every method in the order of the tables: ours, the baselines, the floors, then those this build lacks.
[[nodiscard]] std::vector<MethodSpec> alltoall_methods();

}  // namespace shunt::bench

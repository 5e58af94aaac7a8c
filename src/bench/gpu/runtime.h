#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <shunt/bench/method.h>

#include "../methods/shunt.h"
#include "../pack_device.h"

namespace shunt::bench {

/// The memory of a device, which ranks of one node with the same device share.
struct GpuMemory {
  std::string device;     ///< Its address on the PCI bus
  std::int64_t free = 0;  ///< Bytes; 0: not known
};

/// The stream of one rank, its clock, and what may stand around the work on it. Behind it is CUDA, or in tests the CPU.
/// Threads: one rank's thread.
class GpuStream {
 public:
  virtual ~GpuStream() = default;
  [[nodiscard]] virtual cuda::Stream handle() const noexcept = 0;
  /// Memory and calls of one method, on this stream.
  [[nodiscard]] virtual std::unique_ptr<PackDevice> make_device() = 0;
  /// Of its device, as it is now.
  [[nodiscard]] virtual GpuMemory memory() = 0;
  /// Notes the device's time when the stream comes here. Events have numbers from 0 to kEvents - 1.
  static constexpr std::int32_t kEvents = 16;
  virtual void record(std::int32_t event) = 0;
  /// Between two events that the stream has passed.
  [[nodiscard]] virtual double elapsed_us(std::int32_t from, std::int32_t to) = 0;
  /// Errors: Errc::timeout where the stream has not come to its end by then, or went on before its gate was opened.
  virtual void synchronize(std::chrono::milliseconds deadline) = 0;
  /// Fills the L2 cache with other data, and waits.
  virtual void flush() = 0;
  /// Work given to the stream from here on is noted in a graph and not done; returns the graph's number.
  virtual void begin_capture() = 0;
  [[nodiscard]] virtual std::int32_t end_capture() = 0;
  virtual void replay(std::int32_t graph) = 0;
  /// The stream does nothing behind close_gate() until open_gate().
  virtual void close_gate() = 0;
  virtual void open_gate() noexcept = 0;
};

struct SendPiece {
  std::int32_t peer = 0;
  const void* data = nullptr;
  std::int64_t bytes = 0;
  /// Where it lands at the peer, as the address in this rank's memory of the same allocate(); for exchanges that have
  /// memory of their own.
  void* to = nullptr;
};
struct ReceivePiece {
  std::int32_t peer = 0;
  void* data = nullptr;
  std::int64_t bytes = 0;
};

/// Sends and receives of device memory between ranks, on a stream.
class GpuExchange {
 public:
  virtual ~GpuExchange() = default;
  /// Collective. The n-th piece to a rank is the n-th that it receives from this one, and as long; pieces of 0 bytes are
  /// named on both sides too. The own rank is a peer like the others.
  virtual void exchange(std::span<const SendPiece> sends, std::span<const ReceivePiece> receives,
                        GpuStream& stream) = 0;
  /// Ends what is under way, which a peer that is gone would hold for ever; nothing may be exchanged afterwards.
  virtual void abort() noexcept {}
  /// Collective. Memory that pieces must lie in, at least as much as the rank with the most asks for; the exchange's own,
  /// for its life. Null: pieces may lie in any memory of the device.
  [[nodiscard]] virtual std::byte* allocate(std::int64_t bytes) {
    static_cast<void>(bytes);
    return nullptr;
  }
  /// Collective. `bytes` to every rank and from every rank, blocks in the order of ranks. False: it has no call for that,
  /// and nothing was done.
  [[nodiscard]] virtual bool all_to_all(const void* from, void* to, std::int64_t bytes, GpuStream& stream) {
    static_cast<void>(from), static_cast<void>(to), static_cast<void>(bytes), static_cast<void>(stream);
    return false;
  }
};

/// Whose calls an exchange makes.
enum class Carrier : std::uint8_t { nccl, nvshmem };
inline constexpr std::size_t kCarriers = 2;

/// How methods get exchanges of one library.
struct GpuExchanges {
  std::string unavailable;                                  ///< Why this build or machine has none
  std::function<std::string(const Transport&)> unsuited{};  ///< As MethodSpec::unsuited
  /// Collective. Errors: Errc::unavailable with the reason, on every rank or on some.
  std::function<std::unique_ptr<GpuExchange>(const MethodContext&)> make;
};

/// What the methods of a GPU run on.
struct GpuRuntime {
  std::string unavailable;  ///< Why nothing of it can run here; empty where it can
  std::function<std::unique_ptr<GpuStream>(const MethodContext&)> make_stream;
  std::array<GpuExchanges, kCarriers> exchanges;  ///< By Carrier
  [[nodiscard]] GpuExchanges& of(Carrier carrier) { return exchanges.at(static_cast<std::size_t>(carrier)); }
  [[nodiscard]] const GpuExchanges& of(Carrier carrier) const {
    return exchanges.at(static_cast<std::size_t>(carrier));
  }
};

/// How phases are run and timed.
struct GpuTerms {
  bool cold = false;   ///< The L2 cache holds other data at the begin of each phase
  bool graph = false;  ///< Phases without the host in them are captured once and replayed
  bool gate = true;    ///< Such phases are queued behind a gate that opens once every rank has queued its own
  std::int32_t max_blocks = 0;
};

/// CUDA; only its streams and exchanges call it, so that ranks may still be forked.
[[nodiscard]] GpuRuntime cuda_runtime(const GpuTerms& terms);

/// GPUs of this process; initialises CUDA. 0 in a build without it.
[[nodiscard]] std::int32_t gpu_count();

/// What a rank's methods at one point share.
struct GpuRank {
  /// Made when the first method asks for it. It goes last: NCCL's communicator waits, when it is destroyed, for the graphs
  /// that its calls were captured into, and those are the stream's.
  std::array<std::unique_ptr<GpuExchange>, kCarriers> exchanges;
  std::unique_ptr<GpuStream> stream;
};

/// One for each rank and point: all methods of a rank get the same. Threads: any.
class GpuRanks {
 public:
  explicit GpuRanks(GpuRuntime runtime);
  ~GpuRanks();
  [[nodiscard]] std::shared_ptr<GpuRank> find(const MethodContext& context);
  /// Collective. Errors: those of GpuExchanges::make. Where it fails on some rank, the others drop() theirs, or the next
  /// call would be collective for some only.
  [[nodiscard]] GpuExchange& exchange(const MethodContext& context, GpuRank& rank, Carrier carrier);
  /// Ends an exchange that some rank does not have; does nothing where there is none.
  static void drop(GpuRank& rank, Carrier carrier) noexcept;
  [[nodiscard]] const GpuRuntime& runtime() const noexcept { return runtime_; }

 private:
  struct Table;
  GpuRuntime runtime_;
  std::unique_ptr<Table> table_;
};

/// Runs the phases of one method on a stream and reads their times.
class GpuPhases {
 public:
  /// `meet`: lets all ranks come to the same point.
  GpuPhases(GpuStream& stream, const GpuTerms& terms, std::chrono::milliseconds deadline,
            std::function<void()> meet)
      : stream_(stream), terms_(terms), deadline_(deadline), meet_(std::move(meet)) {}

  /// Everything on the stream is over, and its cache cold where that is asked for.
  void settle();
  /// Runs `work`, which puts something on the stream, and waits for it. device_only: it needs the host for nothing else,
  /// so that it may be captured and wait at the gate. A phase's first run is plain: kernels are loaded then.
  void run(std::int32_t phase, const std::function<void()>& work, bool device_only);
  /// Within work: what came since the last mark of its kind is `inner`. Halves are marked apart from their parts.
  enum class Kind : std::uint8_t { part, half };
  void mark(Inner inner, Kind kind);

  [[nodiscard]] double last_us() const noexcept { return last_us_; }
  /// Of the last run; -1 where there was no mark, as in a graph.
  [[nodiscard]] const InnerTimes& inner_times() const noexcept { return inner_; }

 private:
  struct Mark {
    Inner inner;
    std::int32_t from;
    std::int32_t to;
  };
  GpuStream& stream_;
  GpuTerms terms_;
  std::chrono::milliseconds deadline_;
  std::function<void()> meet_;
  struct State {
    bool ran = false;
    std::int32_t graph = -1;
  };
  std::array<State, SplitMethod::kMostPhases> states_{};
  bool marking_ = false;
  std::vector<Mark> marks_;
  std::array<std::int32_t, 2> last_{};  ///< Event of the last mark, by Kind
  double last_us_ = 0;
  InnerTimes inner_{};
};

}  // namespace shunt::bench

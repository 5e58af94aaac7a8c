#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <shunt/transport/world.h>

namespace shunt {

class Collectives;

/// What an implementation can do. Callers choose by these, never by the transport's name.
struct Capabilities {
  bool ordered = false;        ///< Operations towards one peer take effect in the order they were issued.
  bool load_store = false;     ///< peer_pointer() works for every peer.
  bool device_memory = false;  ///< Symmetric memory lies in GPU memory.
  bool maskable = false;       ///< exclude() is supported.
  /// From this size on a put of its own costs less than copying the bytes into a larger put.
  std::int64_t direct_put_bytes = 0;
};

/// Handle of memory that every rank allocated together, same size and layout on each. Plain value; the
/// transport owns the memory.
struct SymmetricBuffer {
  std::byte* local = nullptr;  ///< This rank's part
  std::int64_t bytes = 0;      ///< Per rank
  std::int32_t id = -1;
};

/// Bytes a signal takes: two cache lines, so that adjacent-line prefetch does not join two signals.
inline constexpr std::int64_t kSignalStride = 128;

/// What a wait waits for; a timeout or a lost peer is reported in these words.
struct WaitSite {
  const char* phase = "";  ///< "dispatch", "combine", "barrier", … (static storage)
  std::int32_t peer = -1;  ///< Rank whose signal is missing
};

/// Ends waits before their signal comes: for what this rank must do first.
class WaitBreaker {
 public:
  virtual ~WaitBreaker() = default;
  /// Called now and then in long waits, on the thread that waits. May use Transport::poll_signal, nothing that waits.
  [[nodiscard]] virtual bool breaks_waits() = 0;
};

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

/// Moves bytes and signals between the ranks of a world.
/// Signals are 64-bit words in symmetric memory, kSignalStride apart, that only grow (compared by signed
/// difference, so they may wrap). One rank writes a given word.
/// Ordering:  payload put towards a peer before signal()/put_signal() to that peer is visible to a reader that
///            saw the signal through wait_signal(). Stores made directly through peer_pointer() are ordered
///            likewise (streaming stores after store_fence() of the pack module). Without `ordered`, two
///            put_signal() calls may arrive in either order; writes of one signal word keep theirs.
/// Threads:   one rank's object is used by one thread at a time.
/// Errors:    Errc::timeout, Errc::peer_lost: the transport is dead; only destruction is allowed, or, where it
///            is maskable, exclude(). A rank that times out tells the others whom it waited for, so that their
///            errors name the same rank.
///            Errc::invalid_argument where bytes or a signal word lie outside the buffer: nothing was moved.
class Transport {
 public:
  virtual ~Transport() = default;
  Transport(const Transport&) = delete;
  Transport& operator=(const Transport&) = delete;

  [[nodiscard]] const World& world() const noexcept { return world_; }
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  /// What carries bytes between nodes, as its library calls it, such as "tcp;ofi_rxm"; empty where nothing does.
  [[nodiscard]] virtual std::string_view provider() const noexcept { return {}; }
  [[nodiscard]] virtual Capabilities capabilities() const noexcept = 0;

  /// Collective. Zeroed, pre-faulted symmetric memory; `what` names it in errors. bytes may be 0.
  /// Errors: Errc::out_of_memory on every rank where the ranks together would exceed the memory available;
  ///         nothing is touched and the transport stays usable. Errc::invalid_argument where ranks ask for
  ///         different sizes.
  virtual SymmetricBuffer allocate(std::int64_t bytes, const char* what, Deadline deadline) = 0;
  /// Local: other ranks may still use theirs, and read this rank's part until they release it too.
  virtual void release(SymmetricBuffer& buffer) noexcept = 0;

  /// Address of `peer`'s part in this rank's address space, or null where it cannot be loaded and stored. For
  /// the own rank always buffer.local.
  [[nodiscard]] virtual std::byte* peer_pointer(const SymmetricBuffer& buffer,
                                                std::int32_t peer) const noexcept = 0;

  /// Starts copying `bytes` from `from` to offset `offset` of peer's part. `from` may be reused after
  /// quiet().
  virtual void put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset, const void* from,
                   std::int64_t bytes) = 0;
  /// put, then the signal word at `signal_offset` of the same buffer becomes `value` once the bytes have
  /// arrived.
  virtual void put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                          const void* from, std::int64_t bytes, std::int64_t signal_offset,
                          std::uint64_t value) = 0;
  /// Sets peer's signal word after everything put to that peer before.
  virtual void signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
                      std::uint64_t value) = 0;
  /// Waits until the own signal word is at least `value` (signed difference) and returns it.
  virtual std::uint64_t wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset,
                                    std::uint64_t value, Deadline deadline, const WaitSite& site) = 0;
  /// The own signal word as it is now. Lets what is under way go on; never waits.
  /// Errors: none but Errc::invalid_argument: lost peers and accusations are for wait_signal to report.
  virtual std::uint64_t poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) = 0;
  /// Orders this rank's earlier puts to each peer before its later ones.
  virtual void fence() = 0;
  /// Returns when every earlier put has been read out of its source and will arrive without further calls.
  virtual void quiet() = 0;

  /// Local; every survivor makes the same calls. These ranks are gone: operations towards them do nothing, waits
  /// no longer look at them or at what they were accused of, allocate() and collectives made from now on are
  /// among the others. Memory allocated before may still be written by an excluded rank that was only slow;
  /// memory allocated after may not.
  /// Errors: Errc::unavailable where the transport is not maskable.
  virtual void exclude(std::span<const std::int32_t> ranks);
  [[nodiscard]] bool excluded(std::int32_t rank) const noexcept {
    return !excluded_.empty() && excluded_[static_cast<std::size_t>(rank)] != 0;
  }

  /// Whether nobody else decides here who is lost; Membership claims this for its life.
  [[nodiscard]] bool claim_membership() noexcept { return !std::exchange(membership_claimed_, true); }
  void release_membership() noexcept { membership_claimed_ = false; }
  /// Every long wait of this object looks at `breaker` and ends with Errc::peer_lost (peer() is -1) where it says so,
  /// unless the signal has come. It must outlive the waits; null: none. Nothing where the transport is not maskable.
  virtual void set_wait_breaker(WaitBreaker* breaker) noexcept { static_cast<void>(breaker); }
  /// While off, a put or signal that finds no room towards its peer throws Errc::timeout at once, accuses nobody and
  /// leaves the transport usable; the payload may have gone without its signal. For talk with ranks that may be gone.
  /// Nothing where operations never wait. On at the start.
  virtual void set_waits_for_room(bool on) noexcept { static_cast<void>(on); }

  /// The same ranks over memory that the CPU can load and store, for what the hosts tell each other: this object, or,
  /// where device_memory is set, the transport beneath it. Ranks are excluded on this object, not on that one.
  /// Ownership: lives as long as this.
  [[nodiscard]] virtual Transport& host() noexcept { return *this; }

  /// For shunt::cuda::AllToAll where kernels cannot store to every peer: its engine (a cuda::detail::Engine, the
  /// caller's) on the library that this memory is of, or null where there is none. Must not outlive this.
  [[nodiscard]] virtual void* make_kernel_engine() { return nullptr; }

  /// Collective. Collectives over host(), in host memory; an implementation with better ones of its own overrides
  /// this.
  virtual std::unique_ptr<Collectives> make_collectives(std::int64_t max_bytes, Deadline deadline);

 protected:
  explicit Transport(const World& world) : world_(world) {}
  World world_;
  std::vector<std::uint8_t> excluded_ = {};  ///< [R], or empty: nobody is

 private:
  bool membership_claimed_ = false;
};

}  // namespace shunt

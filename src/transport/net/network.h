#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include <shunt/transport/collectives.h>
#include <shunt/transport/transport.h>

namespace shunt::net {

/// How peers name a rank's memory in their puts. Plain bytes, exchanged by the caller.
struct MemoryName {
  std::array<std::uint64_t, 4> words{};
};

/// What moves bytes between nodes. HybridTransport puts it beside the memory that the ranks of a node share:
/// it never sees a put to a rank of its own node, and it does not wait for signals. Ranks are those of the
/// world; `id` is that of the SymmetricBuffer, equal on all ranks.
/// Progress:  nothing needs to happen outside these calls; HybridTransport calls progress() in every wait.
///            Signals that arrive are stored (released) to their word in local memory, by hardware or inside
///            any call of this object.
/// Ordering:  as Transport: a signal becomes visible after every put issued to that peer before it, also where
///            the fabric delivers out of order.
/// Errors:    Errc::timeout (with rank, peer, phase "put") where a peer takes nothing for the stall deadline;
///            Errc::peer_lost where the fabric says that it is gone.
/// Threads:   one rank's object is used by one thread at a time.
class Network {
 public:
  virtual ~Network() = default;
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;  ///< "mpi", "ofi"
  [[nodiscard]] virtual std::string_view provider() const noexcept {
    return {};
  }  ///< As Transport::provider()
  [[nodiscard]] virtual bool ordered() const noexcept = 0;
  [[nodiscard]] virtual std::int64_t direct_put_bytes() const noexcept = 0;  ///< See Capabilities
  [[nodiscard]] virtual bool maskable() const noexcept = 0;

  /// Local. Makes [base, base + bytes) ready for peers' puts under `id`. The memory stays until withdraw(id).
  virtual MemoryName expose(std::int32_t id, std::byte* base, std::int64_t bytes) = 0;
  /// Local. names [R]: what every rank got from its expose(id); unused for ranks of this node and excluded ones.
  /// Puts of peers may arrive between expose() and admit().
  virtual void admit(std::int32_t id, std::span<const MemoryName> names) = 0;
  /// Local. Ends both; puts of peers that are still on their way do no harm.
  virtual void withdraw(std::int32_t id) noexcept = 0;

  /// Offsets and sizes have been checked. `from` may be any memory of this process.
  virtual void put(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                   std::int64_t bytes) = 0;
  virtual void put_signal(std::int32_t peer, std::int32_t id, std::int64_t offset, const void* from,
                          std::int64_t bytes, std::int64_t signal_offset, std::uint64_t value) = 0;
  virtual void signal(std::int32_t peer, std::int32_t id, std::int64_t signal_offset,
                      std::uint64_t value) = 0;
  virtual void fence() = 0;
  virtual void quiet() = 0;  ///< As Transport::quiet(); ranks that are gone are not waited for

  /// Moves on what is under way. Cheap where nothing is.
  virtual void progress() = 0;
  /// Whether nothing that this rank issued is under way: all has been read out of its source and arrives without
  /// further calls. Like quiet(), but without waiting; what is meant for lost ranks does not count. A network
  /// whose destructor sees to that need not say.
  [[nodiscard]] virtual bool idle() noexcept { return true; }
  /// A rank that the fabric knows to be gone and that is not excluded, or -1.
  [[nodiscard]] virtual std::int32_t lost() noexcept = 0;
  /// Collective. Collectives of the fabric's own over `transport`, which outlives them; null where there are none.
  [[nodiscard]] virtual std::unique_ptr<Collectives> make_collectives(Transport& transport,
                                                                      std::int64_t max_bytes,
                                                                      Deadline deadline) {
    static_cast<void>(transport);
    static_cast<void>(max_bytes);
    static_cast<void>(deadline);
    return nullptr;
  }
  /// From now on no call waits for room beyond `end`, whatever the stall deadline and the fabric say: it throws
  /// Errc::timeout instead. Deadline::max() lifts it.
  virtual void end_waits_at(Deadline end) noexcept { static_cast<void>(end); }
  /// See Transport::set_wait_breaker(); for waits for room.
  virtual void set_wait_breaker(WaitBreaker* breaker) noexcept { static_cast<void>(breaker); }
  /// Forgets these ranks: what is queued for them is dropped, what comes from them has no effect.
  virtual void exclude(std::span<const std::int32_t> ranks) = 0;
};

}  // namespace shunt::net

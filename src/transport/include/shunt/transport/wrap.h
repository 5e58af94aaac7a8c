#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include <shunt/transport/transport.h>

namespace shunt {

/// What the wrapper does to the operations that pass through it.
struct DelayOptions {
  std::uint64_t seed = 1;
  std::chrono::microseconds max_delay{
      50};                   ///< Each put, signal and wait is held back by a random time up to this.
  double probability = 0.5;  ///< Share of operations held back.
  bool reorder = true;       ///< Let put_signal()s to one peer, and puts between fences, overtake each other.
  bool hide_load_store = false;   ///< peer_pointer() of other ranks is null, as on a network.
  bool hide_other_nodes = false;  ///< The same for ranks of other nodes only, as in a cluster.
  std::int32_t nodes = 0;  ///< Where > 0, the world claims so many nodes: rank r is on node r * nodes / size.
};

/// Wraps `inner` so that operations take effect late and, with `reorder`, out of order, as far as the
/// contract of Transport permits: for tests that results do not depend on timing. With `reorder`,
/// capabilities().ordered is false. Direct stores through peer_pointer() are not delayed, but the signals
/// that publish them are. Payload of a held operation is copied in the call. Two writes of one signal word
/// never change places.
/// Ownership: `inner` must outlive the wrapper.
/// Threads:   as Transport. Held operations are carried out inside later calls of this object (waits included)
///            and at the latest in quiet() or the destructor.
[[nodiscard]] std::unique_ptr<Transport> make_delayed(Transport& inner, const DelayOptions& options);

/// What the faulty wrapper does to payload that passes through put() and put_signal() towards other ranks.
struct FaultOptions {
  std::uint64_t seed = 1;
  double flip_probability = 0;       ///< Share of operations with payload in which one bit arrives wrong
  double truncate_probability = 0;   ///< Share of them whose last bytes do not arrive
  std::int64_t skip_operations = 0;  ///< The first operations of this rank pass unharmed
};

/// Wraps `inner` so that payload arrives damaged, as from broken hardware: for tests of checked modes. Signals
/// and the wrapper's own peer_pointer() are not touched.
/// Ownership: `inner` must outlive the wrapper. Threads: as Transport.
class FaultyTransport : public Transport {
 public:
  using Transport::Transport;
  /// Operations so far with payload towards other ranks, and those of them that arrived wrong.
  [[nodiscard]] virtual std::int64_t operations() const noexcept = 0;
  [[nodiscard]] virtual std::int64_t damaged() const noexcept = 0;
};
[[nodiscard]] std::unique_ptr<FaultyTransport> make_faulty(Transport& inner, const FaultOptions& options);

}  // namespace shunt

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
  bool hide_load_store = false;  ///< peer_pointer() of other ranks is null, as on a network.
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

}  // namespace shunt

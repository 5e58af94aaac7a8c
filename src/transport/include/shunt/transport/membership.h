#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <shunt/transport/transport.h>

namespace shunt {

/// What all survivors have agreed on.
struct Agreement {
  std::vector<std::int32_t> lost;     ///< Ranks excluded by this agreement, ascending
  std::vector<std::int32_t> members;  ///< Survivors, ascending
  std::int64_t highest = 0;           ///< Largest `value` that a member brought
};

/// Agreement on who is still there after a rank was lost, over any maskable Transport. Safe where a rank is
/// only slow or cut off: a decision needs the consent of a strict majority of the ranks that were members
/// before, or of half of them with the lowest of them among these, so two sides never both go on.
/// While it lives, long waits of the transport end with Errc::peer_lost (peer() -1) when requested() becomes true: a
/// rank that has not noticed a loss itself must not miss the agreement on it.
/// Threads: as Transport.
class Membership {
 public:
  /// Collective among all ranks, before anything is lost.
  /// Errors: Errc::unavailable where the transport is not maskable; Errc::invalid_state where another Membership of it
  ///         lives: two would leave different ranks out.
  Membership(Transport& transport, Deadline deadline);
  ~Membership();
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

  /// Whether a member asks for an agreement that this rank has not joined yet; cheap, to be looked at in waits
  /// and at the start of steps.
  [[nodiscard]] bool requested();

  /// Collective among the survivors: each calls it when it has lost a rank (`suspects`, not empty) or found
  /// requested(). Excludes the lost ranks from the transport before it returns. Ranks that do not join within
  /// `window` are lost, suspected ones after a quarter of it. A suspect that joins is only slow and stays where
  /// all others hear it: `lost` may be empty, and the transport is usable again all the same. Of ranks that
  /// cannot hear each other some are lost. Takes up to 3 windows where ranks fall meanwhile.
  /// Result: the same on every member.
  /// Errors: Errc::peer_lost after 3 windows where no side that this rank is on may go on: it says how many of
  ///         how many ranks answered; and where the others went on without this one. Both are dead then.
  ///         Errc::invalid_state after such an error. Errc::invalid_argument: a window below 1 ms.
  Agreement agree(std::span<const std::int32_t> suspects, std::int64_t value,
                  std::chrono::milliseconds window);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shunt

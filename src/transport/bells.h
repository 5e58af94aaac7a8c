#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <shunt/transport/transport.h>

namespace shunt {

/// Waits for words that no CPU can watch, those in GPU memory. Whoever signals from the host also rings a bell of the
/// receiver in host memory, once the word is stored. Waits watch the bell, with all that the host transport's waits do,
/// and look at the word when it rings. A word that a kernel has stored is found too, but only when a wait has begun to
/// sleep, which it does after a millisecond or so.
/// Threads: as the transport whose words these are.
class Bells final : private WaitBreaker {
 public:
  /// Reads a word.
  using Load = std::function<std::uint64_t(const std::byte* word)>;

  /// Collective. `host` must outlive this, which is its wait breaker.
  Bells(Transport& host, Load load, Deadline deadline);
  ~Bells() override;
  Bells(const Bells&) = delete;
  Bells& operator=(const Bells&) = delete;

  /// Tells `peer` that a word has been stored there, after which it must be visible.
  void ring(std::int32_t peer);
  /// As Transport::wait_signal(). A wait that names no peer is ended by what a kernel has stored, or by its deadline.
  std::uint64_t wait(const std::byte* word, std::uint64_t value, Deadline deadline, const WaitSite& site);
  /// See Transport::set_wait_breaker().
  void set_breaker(WaitBreaker* breaker) noexcept { breaker_ = breaker; }

 private:
  /// Long waits of `host_` call this now and then.
  [[nodiscard]] bool breaks_waits() override;

  Transport& host_;
  Load load_;
  SymmetricBuffer words_;             ///< One for each peer, which counts its signals
  std::vector<std::uint64_t> rings_;  ///< [R] Signals to each peer so far
  WaitBreaker* breaker_ = nullptr;
  const std::byte* awaited_word_ = nullptr;  ///< Of the wait that is under way
  std::uint64_t awaited_value_ = 0;
  bool word_came_ = false;
};

}  // namespace shunt

#include "bells.h"

#include <utility>

#include <shunt/core/error.h>

#include "signal_word.h"

namespace shunt {

Bells::Bells(Transport& host, Load load, Deadline deadline)
    : host_(host),
      load_(std::move(load)),
      words_(host.allocate(host.world().size * kSignalStride, "bells of signals", deadline)),
      rings_(static_cast<std::size_t>(host.world().size)) {
  host_.set_wait_breaker(this);
}

Bells::~Bells() {
  host_.set_wait_breaker(nullptr);
  host_.release(words_);
}

void Bells::ring(std::int32_t peer) {
  host_.signal(words_, peer, host_.world().rank * kSignalStride, ++rings_[static_cast<std::size_t>(peer)]);
}

std::uint64_t Bells::wait(const std::byte* word, std::uint64_t value, Deadline deadline,
                          const WaitSite& site) {
  const World& world = host_.world();
  const bool named = site.peer >= 0 && site.peer < world.size;
  const std::int64_t bell = (named ? site.peer : world.rank) * kSignalStride;
  while (true) {
    // Before the word: a bell that rings after this look ends the wait below.
    const std::uint64_t rung = host_.poll_signal(words_, bell);
    std::uint64_t seen = load_(word);
    if (reached(seen, value)) return seen;
    awaited_word_ = word;
    awaited_value_ = value;
    word_came_ = false;
    try {
      host_.wait_signal(words_, bell, rung + 1, deadline, site);
      awaited_word_ = nullptr;
    } catch (const Error&) {
      awaited_word_ = nullptr;
      // Also where the peer has stored it last and gone.
      seen = load_(word);
      if (word_came_ || reached(seen, value)) return seen;
      throw;
    }
  }
}

bool Bells::breaks_waits() {
  if (awaited_word_ != nullptr && reached(load_(awaited_word_), awaited_value_)) {
    word_came_ = true;
    return true;
  }
  return breaker_ != nullptr && breaker_->breaks_waits();
}

}  // namespace shunt

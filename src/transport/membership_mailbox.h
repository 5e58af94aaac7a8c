#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <vector>

#include <shunt/transport/transport.h>

namespace shunt {

/// Ranks of a world.
class RankSet {
 public:
  explicit RankSet(std::int32_t size = 0) : words_((static_cast<std::size_t>(size) + 63) / 64) {}

  [[nodiscard]] bool has(std::int32_t rank) const noexcept {
    return (words_[static_cast<std::size_t>(rank) / 64] >> (rank % 64) & 1) != 0;
  }
  void add(std::int32_t rank) noexcept {
    words_[static_cast<std::size_t>(rank) / 64] |= std::uint64_t{1} << (rank % 64);
  }
  void remove(std::int32_t rank) noexcept {
    words_[static_cast<std::size_t>(rank) / 64] &= ~(std::uint64_t{1} << (rank % 64));
  }
  void add(const RankSet& others) noexcept {
    for (std::size_t at = 0; at < words_.size(); ++at) words_[at] |= others.words_[at];
  }
  [[nodiscard]] std::int32_t count() const noexcept {
    std::int32_t count = 0;
    for (const std::uint64_t word : words_) count += std::popcount(word);
    return count;
  }
  [[nodiscard]] bool operator==(const RankSet&) const = default;

  [[nodiscard]] std::vector<std::uint64_t>& words() noexcept { return words_; }
  [[nodiscard]] const std::vector<std::uint64_t>& words() const noexcept { return words_; }

 private:
  std::vector<std::uint64_t> words_;
};

/// What an agreement can decide.
struct Choice {
  RankSet members;
  std::int64_t highest = 0;
};

/// All that one rank says in an agreement. Only its owner writes it; the others see whole states of it, not
/// each one, but never an older one after a newer.
struct Register {
  std::uint64_t epoch = 0;      ///< Number of the agreement, from 1; 0: none yet
  std::int64_t elapsed_ns = 0;  ///< Since its owner joined
  std::int64_t value = 0;
  std::uint64_t promised = 0;  ///< It takes part in no ballot below this one
  std::uint64_t accepted = 0;  ///< The last ballot whose choice it accepted, or 0
  Choice accepted_choice;
  std::uint64_t proposed = 0;  ///< The last ballot of its own, or 0
  bool proposing = false;      ///< Whether it asks to accept proposed_choice; else to promise
  Choice proposed_choice;
  RankSet suspects;
  RankSet heard;  ///< Whose register of this agreement, or a later one, it has seen
};

/// Registers and decisions of all members of a world in each other's memory, over put_signal, signal and
/// poll_signal alone. Nothing is overwritten that its reader may still read: a reader acknowledges registers,
/// and a writer goes on with a peer only as far as it has slots free there, so little is on its way to a rank
/// that does not look; decisions have two slots by parity, since nobody writes the one after the next before
/// the reader took part in the next.
/// Threads: as Transport.
class MembershipMailbox {
 public:
  /// Collective.
  MembershipMailbox(Transport& transport, Deadline deadline);
  ~MembershipMailbox();
  MembershipMailbox(const MembershipMailbox&) = delete;
  MembershipMailbox& operator=(const MembershipMailbox&) = delete;

  /// The epoch of the newest register that `peer` has put here, without taking it.
  [[nodiscard]] std::uint64_t epoch_of(std::int32_t peer);
  /// Takes peer's newest register. Result: whether it is newer than the last one taken.
  bool take(std::int32_t peer, Register& to);
  /// Puts `state` to `peer`. Result: false where the peer has not taken enough of the earlier ones, or takes nothing now.
  bool put(std::int32_t peer, const Register& state);

  /// The newest epoch for which `peer` has put a decision here, or 0.
  [[nodiscard]] std::uint64_t decision_of(std::int32_t peer);
  [[nodiscard]] Choice read_decision(std::int32_t peer, std::uint64_t epoch) const;
  /// What put_decision() puts; it stays until forget_drafts().
  [[nodiscard]] const std::vector<std::uint64_t>& draft_decision(const Choice& choice);
  /// Result: false where the peer takes nothing now.
  bool put_decision(std::int32_t peer, std::uint64_t epoch, const std::vector<std::uint64_t>& draft);

  /// Drafts of what was put may be reused: everything has arrived, or its target is excluded.
  void forget_drafts() {
    unsent_.assign(unsent_.size(), {});
    drafts_.clear();
  }

 private:
  [[nodiscard]] std::int64_t register_word(std::int32_t writer) const { return writer * kSignalStride; }
  [[nodiscard]] std::int64_t taken_word(std::int32_t reader) const {
    return (size_ + reader) * kSignalStride;
  }
  [[nodiscard]] std::int64_t decision_word(std::int32_t writer) const {
    return (2 * size_ + writer) * kSignalStride;
  }
  [[nodiscard]] std::int64_t register_at(std::int32_t writer, std::uint64_t signal) const;
  [[nodiscard]] std::int64_t decision_at(std::int32_t writer, std::uint64_t epoch) const;
  [[nodiscard]] bool reachable(std::int32_t peer) const {
    return unreachable_[static_cast<std::size_t>(peer)] == 0;
  }
  template <class Call>
  bool towards(std::int32_t peer, const Call& call);
  /// A register whose signal is not known to have gone. It is put again as it is: with other content in the same slot
  /// the two could mix where the network keeps no order.
  struct Unsent {
    const std::vector<std::uint64_t>* draft = nullptr;
    std::uint64_t signal = 0;
  };
  bool send(std::int32_t peer, const Unsent& what);
  void read_register(std::int32_t peer, std::uint64_t signal, Register& to) const;

  Transport& transport_;
  std::int32_t rank_;
  std::int32_t size_;
  std::int64_t register_bytes_;
  std::int64_t decision_bytes_;
  std::int64_t registers_at_;
  std::int64_t decisions_at_;
  SymmetricBuffer memory_;
  std::vector<std::uint64_t> sent_;                ///< [R] Registers put to each peer, ever
  std::vector<std::uint64_t> taken_;               ///< [R] Signal of the register last taken from each peer
  std::vector<std::uint64_t> acknowledged_;        ///< [R] The same, as far as the peer has been told
  std::vector<Unsent> unsent_;                     ///< [R]
  std::vector<std::uint8_t> unreachable_;          ///< [R] Operations towards them have failed
  std::deque<std::vector<std::uint64_t>> drafts_;  ///< A transport may read them until the peers have them
};

}  // namespace shunt

#include "membership_mailbox.h"

#include <cstring>

#include <shunt/core/error.h>

namespace shunt {
namespace {

/// A register signal is its epoch and, below, the number of registers its owner has put to this reader.
constexpr std::int32_t kCountBits = 32;
constexpr std::uint64_t kCountMask = (std::uint64_t{1} << kCountBits) - 1;
/// Registers on their way to one reader.
constexpr std::uint64_t kSlots = 4;

[[nodiscard]] std::int64_t slot_bytes(std::int64_t words) {
  return (words * 8 + kSignalStride - 1) / kSignalStride * kSignalStride;
}

class Writer {
 public:
  void add(std::uint64_t value) { words_.push_back(value); }
  void add(std::int64_t value) { words_.push_back(static_cast<std::uint64_t>(value)); }
  void add(const RankSet& set) { words_.insert(words_.end(), set.words().begin(), set.words().end()); }
  void add(const Choice& choice) {
    add(choice.highest);
    add(choice.members);
  }
  [[nodiscard]] std::vector<std::uint64_t> take() { return std::move(words_); }

 private:
  std::vector<std::uint64_t> words_;
};

class Reader {
 public:
  explicit Reader(const std::byte* from) : from_(from) {}
  void get(std::uint64_t& to) {
    std::memcpy(&to, from_, sizeof to);
    from_ += sizeof to;
  }
  void get(std::int64_t& to) {
    std::uint64_t word = 0;
    get(word);
    to = static_cast<std::int64_t>(word);
  }
  void get(RankSet& to) {
    for (std::uint64_t& word : to.words()) get(word);
  }
  void get(Choice& to) {
    get(to.highest);
    get(to.members);
  }

 private:
  const std::byte* from_;
};

constexpr std::int64_t kRegisterNumbers = 9;
constexpr std::int64_t kRegisterSets = 4;

}  // namespace

MembershipMailbox::MembershipMailbox(Transport& transport, Deadline deadline)
    : transport_(transport),
      rank_(transport.world().rank),
      size_(transport.world().size),
      sent_(static_cast<std::size_t>(size_)),
      taken_(static_cast<std::size_t>(size_)),
      acknowledged_(static_cast<std::size_t>(size_)),
      unsent_(static_cast<std::size_t>(size_)),
      unreachable_(static_cast<std::size_t>(size_)) {
  const std::int64_t set = (size_ + 63) / 64;
  register_bytes_ = slot_bytes(kRegisterNumbers + kRegisterSets * set);
  decision_bytes_ = slot_bytes(1 + set);
  registers_at_ = 3 * size_ * kSignalStride;
  decisions_at_ = registers_at_ + size_ * static_cast<std::int64_t>(kSlots) * register_bytes_;
  memory_ = transport.allocate(decisions_at_ + size_ * 2 * decision_bytes_, "membership", deadline);
}

MembershipMailbox::~MembershipMailbox() {
  transport_.release(memory_);
}

/// A transport may say at once that a peer is gone. That is what the agreement is about, so it only ends the talk to this
/// peer. Nothing here waits for room: whoever waits for a rank that is gone is lost to the others himself.
/// Result: false where there is no room now.
template <class Call>
bool MembershipMailbox::towards(std::int32_t peer, const Call& call) {
  if (!reachable(peer)) return true;
  struct NoWaits {
    Transport& transport;
    explicit NoWaits(Transport& of) : transport(of) { transport.set_waits_for_room(false); }
    ~NoWaits() { transport.set_waits_for_room(true); }
  } const scope(transport_);
  try {
    call();
  } catch (const Error& error) {
    if (error.code() == Errc::timeout) return false;
    unreachable_[static_cast<std::size_t>(peer)] = 1;
  }
  return true;
}

std::int64_t MembershipMailbox::register_at(std::int32_t writer, std::uint64_t signal) const {
  const auto slot = static_cast<std::int64_t>((signal & kCountMask) % kSlots);
  return registers_at_ + (writer * static_cast<std::int64_t>(kSlots) + slot) * register_bytes_;
}

std::int64_t MembershipMailbox::decision_at(std::int32_t writer, std::uint64_t epoch) const {
  return decisions_at_ + (2 * writer + static_cast<std::int64_t>(epoch % 2)) * decision_bytes_;
}

std::uint64_t MembershipMailbox::epoch_of(std::int32_t peer) {
  return transport_.poll_signal(memory_, register_word(peer)) >> kCountBits;
}

bool MembershipMailbox::take(std::int32_t peer, Register& to) {
  const std::uint64_t signal = transport_.poll_signal(memory_, register_word(peer));
  std::uint64_t& taken = taken_[static_cast<std::size_t>(peer)];
  const bool newer = signal != taken;
  taken = signal;
  if (newer) read_register(peer, signal, to);
  std::uint64_t& told = acknowledged_[static_cast<std::size_t>(peer)];
  if (told != signal &&
      towards(peer, [&] { transport_.signal(memory_, peer, taken_word(rank_), signal & kCountMask); }))
    told = signal;
  return newer;
}

void MembershipMailbox::read_register(std::int32_t peer, std::uint64_t signal, Register& to) const {
  Reader reader(memory_.local + register_at(peer, signal));
  std::uint64_t proposing = 0;
  reader.get(to.epoch);
  reader.get(to.elapsed_ns);
  reader.get(to.value);
  reader.get(to.promised);
  reader.get(to.accepted);
  reader.get(to.accepted_choice);
  reader.get(to.proposed);
  reader.get(proposing);
  reader.get(to.proposed_choice);
  reader.get(to.suspects);
  reader.get(to.heard);
  to.proposing = proposing != 0;
}

bool MembershipMailbox::put(std::int32_t peer, const Register& state) {
  Unsent& unsent = unsent_[static_cast<std::size_t>(peer)];
  if (unsent.draft != nullptr && !send(peer, unsent)) return false;
  unsent = {};
  std::uint64_t& sent = sent_[static_cast<std::size_t>(peer)];
  if (sent - transport_.poll_signal(memory_, taken_word(peer)) >= kSlots) return false;
  const std::uint64_t signal = state.epoch << kCountBits | ++sent;
  Writer writer;
  writer.add(state.epoch);
  writer.add(state.elapsed_ns);
  writer.add(state.value);
  writer.add(state.promised);
  writer.add(state.accepted);
  writer.add(state.accepted_choice);
  writer.add(state.proposed);
  writer.add(static_cast<std::uint64_t>(state.proposing));
  writer.add(state.proposed_choice);
  writer.add(state.suspects);
  writer.add(state.heard);
  const Unsent next{.draft = &drafts_.emplace_back(writer.take()), .signal = signal};
  if (send(peer, next)) return true;
  unsent = next;
  return false;
}

bool MembershipMailbox::send(std::int32_t peer, const Unsent& what) {
  return towards(peer, [&] {
    transport_.put_signal(memory_, peer, register_at(rank_, what.signal), what.draft->data(),
                          static_cast<std::int64_t>(what.draft->size() * 8), register_word(rank_),
                          what.signal);
  });
}

std::uint64_t MembershipMailbox::decision_of(std::int32_t peer) {
  return transport_.poll_signal(memory_, decision_word(peer));
}

Choice MembershipMailbox::read_decision(std::int32_t peer, std::uint64_t epoch) const {
  Choice choice{.members = RankSet(size_)};
  Reader reader(memory_.local + decision_at(peer, epoch));
  reader.get(choice);
  return choice;
}

const std::vector<std::uint64_t>& MembershipMailbox::draft_decision(const Choice& choice) {
  Writer writer;
  writer.add(choice);
  return drafts_.emplace_back(writer.take());
}

bool MembershipMailbox::put_decision(std::int32_t peer, std::uint64_t epoch,
                                     const std::vector<std::uint64_t>& draft) {
  return towards(peer, [&] {
    transport_.put_signal(memory_, peer, decision_at(rank_, epoch), draft.data(),
                          static_cast<std::int64_t>(draft.size() * 8), decision_word(rank_), epoch);
  });
}

}  // namespace shunt

#include "net/control_region.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

namespace shunt::net {
namespace {

constexpr std::int64_t kLines = 4;
constexpr std::int64_t kParts = kLines + 2;
/// A notice is a word, for which a peer that lives has room soon. Who sends one is often giving up on another rank and
/// must report that in time.
constexpr std::chrono::milliseconds kTimeForNotice{100};
constexpr std::chrono::milliseconds kTimeForDoubtful{10};

}  // namespace

ControlRegion::ControlRegion(shm::ShmTransport& node, Network& network, Bootstrap& bootstrap,
                             const World& world, std::span<const std::int32_t> local_of, Deadline deadline)
    : node_(node),
      network_(network),
      world_(world),
      local_of_(local_of.begin(), local_of.end()),
      excluded_(static_cast<std::size_t>(world.size)),
      drafts_(static_cast<std::size_t>(kLines * kSignalStride)),
      answered_(static_cast<std::size_t>(world.size)) {
  memory_ = node_.allocate(kParts * world_.size * kSignalStride, "control region", deadline);
  const MemoryName own = network_.expose(kId, memory_.local, memory_.bytes);
  std::vector<MemoryName> names(static_cast<std::size_t>(world_.size));
  bootstrap.allgather(&own, sizeof own, names.data(), deadline, "start");
  network_.admit(kId, names);
  // Nobody may put here before everybody has admitted, since some networks know their peers only then.
  std::uint8_t ready = 1;
  std::vector<std::uint8_t> all_ready(static_cast<std::size_t>(world_.size));
  bootstrap.allgather(&ready, sizeof ready, all_ready.data(), deadline, "start");
}

ControlRegion::~ControlRegion() {
  network_.withdraw(kId);
  node_.release(memory_);
}

std::uint64_t ControlRegion::word(std::int64_t offset) const noexcept {
  return std::atomic_ref(*reinterpret_cast<std::uint64_t*>(memory_.local + offset))
      .load(std::memory_order_acquire);
}

void ControlRegion::exchange(const void* mine, std::int64_t bytes, void* all, Deadline deadline,
                             const char* phase) {
  ++epoch_;
  const auto line = static_cast<std::int64_t>((epoch_ >> 32) % 2 * 2 + epoch_ % 2);
  std::byte* draft = drafts_.data() + line * kSignalStride;
  std::memcpy(draft, mine, static_cast<std::size_t>(bytes));
  const std::int64_t at = line_at(world_.rank, line);
  for (std::int32_t step = 1; step < world_.size; ++step) {
    const std::int32_t peer = (world_.rank + step) % world_.size;
    const auto index = static_cast<std::size_t>(peer);
    if (excluded_[index] != 0) continue;
    if (local_of_[index] >= 0) {
      node_.put_signal(memory_, local_of_[index], at + 8, draft, bytes, at, epoch_);
    } else {
      network_.put_signal(peer, kId, at + 8, draft, bytes, at, epoch_);
    }
  }
  auto* records = static_cast<std::byte*>(all);
  std::memcpy(records + world_.rank * bytes, mine, static_cast<std::size_t>(bytes));
  for (std::int32_t step = 1; step < world_.size; ++step) {
    const std::int32_t peer = (world_.rank + step) % world_.size;
    if (excluded_[static_cast<std::size_t>(peer)] != 0) continue;
    const std::byte* from = memory_.local + line_at(peer, line);
    static_cast<void>(node_.waiter().wait(from, epoch_, deadline, {.phase = phase, .peer = peer}));
    std::memcpy(records + peer * bytes, from + 8, static_cast<std::size_t>(bytes));
  }
}

void ControlRegion::exclude(std::span<const std::int32_t> ranks) {
  for (const std::int32_t rank : ranks) excluded_[static_cast<std::size_t>(rank)] = 1;
  epoch_ = ((epoch_ >> 32) + 1) << 32;
}

std::uint64_t ControlRegion::notice_of(std::int32_t rank) const noexcept {
  return word(notice_at(rank));
}

void ControlRegion::send(std::int32_t rank, std::int64_t offset, std::uint64_t value,
                         std::chrono::milliseconds patience) noexcept {
  network_.end_waits_at(std::min<Deadline>(end_, Clock::now() + patience));
  try {
    network_.signal(rank, kId, offset, value);
  } catch (const std::exception&) {
    // The next wait for that rank reports it, where anybody waits for it.
  }
  network_.end_waits_at(end_);
}

void ControlRegion::leave_by(Deadline end) noexcept {
  end_ = end;
  network_.end_waits_at(end);
}

void ControlRegion::send_to_all(std::int64_t offset, std::uint64_t value, std::int32_t doubtful) noexcept {
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    if (rank != doubtful && talks_to(rank)) send(rank, offset, value, kTimeForNotice);
  }
  if (doubtful >= 0 && doubtful < world_.size && talks_to(doubtful))
    send(doubtful, offset, value, kTimeForDoubtful);
}

void ControlRegion::publish(std::uint64_t notice, std::int32_t doubtful) noexcept {
  send_to_all(notice_at(world_.rank), notice, doubtful);
}

void ControlRegion::inquire(std::int32_t doubtful) noexcept {
  send_to_all(inquiry_at(world_.rank), ++inquiries_, doubtful);
}

void ControlRegion::answer(std::uint64_t notice) noexcept {
  for (std::int32_t rank = 0; rank < world_.size; ++rank) {
    if (!talks_to(rank)) continue;
    const std::uint64_t asked = word(inquiry_at(rank));
    std::uint64_t& answered = answered_[static_cast<std::size_t>(rank)];
    if (asked == answered) continue;
    answered = asked;
    send(rank, notice_at(world_.rank), notice, kTimeForNotice);
  }
}

}  // namespace shunt::net

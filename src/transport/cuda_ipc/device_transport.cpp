#include "cuda_ipc/device_transport.h"

#include <algorithm>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace shunt::cuda_ipc {
namespace {

[[nodiscard]] bool reached(std::uint64_t seen, std::uint64_t value) noexcept {
  return static_cast<std::int64_t>(seen - value) >= 0;
}

}  // namespace

DeviceTransport::DeviceTransport(Transport& control, std::unique_ptr<DeviceApi> device, Deadline deadline,
                                 std::unique_ptr<Transport> owned)
    : Transport(control.world()),
      owned_(std::move(owned)),
      control_(control),
      device_(std::move(device)),
      rings_(static_cast<std::size_t>(world_.size)) {
  bells_ = control_.allocate(world_.size * kSignalStride, "bells of signals", deadline);
  open_records(deadline);
  meet_devices(deadline);
  control_.set_wait_breaker(this);
}

DeviceTransport::~DeviceTransport() {
  control_.set_wait_breaker(nullptr);
  for (Buffer& buffer : buffers_) release_parts(buffer.parts);
  control_.release(records_);
  control_.release(bells_);
}

std::byte* DeviceTransport::peer_pointer(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
  if (!holds(buffer, peer) || excluded(peer)) return nullptr;
  return buffers_[static_cast<std::size_t>(buffer.id)].parts[static_cast<std::size_t>(peer)];
}

std::byte* DeviceTransport::target(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                   std::int64_t bytes) const {
  if (!holds(buffer, peer) || offset < 0 || bytes < 0 || offset > buffer.bytes - bytes) [[unlikely]] {
    throw Error(
        Errc::invalid_argument,
        fmt::format(
            "rank {}: {} bytes at offset {} of rank {}, but buffer {} has {} bytes on ranks 0 to {}{}",
            world_.rank, bytes, offset, peer, buffer.id, buffer.bytes, world_.size - 1,
            offset % 8 == 0 ? "" : "; signal words lie at multiples of 8 bytes"));
  }
  std::byte* part = buffers_[static_cast<std::size_t>(buffer.id)].parts[static_cast<std::size_t>(peer)];
  return part == nullptr ? nullptr : part + offset;
}

std::byte* DeviceTransport::signal_target(const SymmetricBuffer& buffer, std::int32_t peer,
                                          std::int64_t signal_offset) const {
  // A length that fits nowhere: the check of target() composes the message.
  return target(buffer, peer, signal_offset, signal_offset % 8 == 0 ? 8 : buffer.bytes + 1);
}

void DeviceTransport::put(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                          const void* from, std::int64_t bytes) {
  std::byte* to = target(buffer, peer, offset, bytes);
  if (!excluded(peer) && bytes > 0) device_->copy(to, from, bytes);
}

void DeviceTransport::put_signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                 const void* from, std::int64_t bytes, std::int64_t signal_offset,
                                 std::uint64_t value) {
  std::byte* word = signal_target(buffer, peer, signal_offset);
  std::byte* to = target(buffer, peer, offset, bytes);
  if (excluded(peer)) return;
  if (bytes > 0) device_->copy(to, from, bytes);
  store_and_ring(word, peer, value);
}

void DeviceTransport::signal(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t signal_offset,
                             std::uint64_t value) {
  std::byte* word = signal_target(buffer, peer, signal_offset);
  if (!excluded(peer)) store_and_ring(word, peer, value);
}

void DeviceTransport::store_and_ring(std::byte* word, std::int32_t peer, std::uint64_t value) {
  device_->store_signal(word, value);
  // Who hears the bell must find the word.
  device_->synchronize();
  control_.signal(bells_, peer, world_.rank * kSignalStride, ++rings_[static_cast<std::size_t>(peer)]);
}

std::uint64_t DeviceTransport::wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset,
                                           std::uint64_t value, Deadline deadline, const WaitSite& site) {
  const std::byte* word = signal_target(buffer, world_.rank, signal_offset);
  // A wait that names no peer is ended by what a kernel has stored, or by its deadline.
  const bool named = site.peer >= 0 && site.peer < world_.size;
  const std::int64_t bell = (named ? site.peer : world_.rank) * kSignalStride;
  while (true) {
    // Before the word: a bell that rings after this look ends the wait below.
    const std::uint64_t rung = control_.poll_signal(bells_, bell);
    std::uint64_t seen = device_->load_signal(word);
    if (reached(seen, value)) return seen;
    awaited_word_ = word;
    awaited_value_ = value;
    word_came_ = false;
    try {
      control_.wait_signal(bells_, bell, rung + 1, deadline, site);
      awaited_word_ = nullptr;
    } catch (const Error&) {
      awaited_word_ = nullptr;
      // Also where the peer has stored it last and gone.
      seen = device_->load_signal(word);
      if (word_came_ || reached(seen, value)) return seen;
      throw;
    }
  }
}

/// Long waits of `control_` call this now and then.
bool DeviceTransport::breaks_waits() {
  if (awaited_word_ != nullptr && reached(device_->load_signal(awaited_word_), awaited_value_)) {
    word_came_ = true;
    return true;
  }
  return breaker_ != nullptr && breaker_->breaks_waits();
}

std::uint64_t DeviceTransport::poll_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset) {
  return device_->load_signal(signal_target(buffer, world_.rank, signal_offset));
}

void DeviceTransport::exclude(std::span<const std::int32_t> ranks) {
  control_.exclude(ranks);
  excluded_.resize(static_cast<std::size_t>(world_.size));
  for (std::int32_t rank = 0; rank < world_.size; ++rank)
    excluded_[static_cast<std::size_t>(rank)] = control_.excluded(rank) ? 1 : 0;
  records_stale_ = true;
}

std::int32_t DeviceTransport::lowest_rank() const noexcept {
  std::int32_t rank = 0;
  while (excluded(rank)) ++rank;
  return rank;
}

}  // namespace shunt::cuda_ipc

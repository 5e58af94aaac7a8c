#include "cuda_ipc/device_transport.h"

#include <utility>

#include "signal_word.h"

namespace shunt::cuda_ipc {

DeviceTransport::DeviceTransport(Transport& control, std::unique_ptr<DeviceApi> device, Deadline deadline,
                                 std::unique_ptr<Transport> owned)
    : Transport(control.world()),
      owned_(std::move(owned)),
      control_(control),
      device_(std::move(device)),
      bells_(
          control, [this](const std::byte* word) { return device_->load_signal(word); }, deadline) {
  open_records(deadline);
  meet_devices(deadline);
}

DeviceTransport::~DeviceTransport() {
  for (Buffer& buffer : buffers_) release_parts(buffer.parts);
  control_.release(records_);
}

std::byte* DeviceTransport::peer_pointer(const SymmetricBuffer& buffer, std::int32_t peer) const noexcept {
  if (!holds(buffer, peer) || excluded(peer)) return nullptr;
  return buffers_[static_cast<std::size_t>(buffer.id)].parts[static_cast<std::size_t>(peer)];
}

std::byte* DeviceTransport::target(const SymmetricBuffer& buffer, std::int32_t peer, std::int64_t offset,
                                   std::int64_t bytes) const {
  if (!holds(buffer, peer) || offset < 0 || bytes < 0 || offset > buffer.bytes - bytes) [[unlikely]] {
    throw_outside(world_, buffer, peer, offset, bytes);
  }
  std::byte* part = buffers_[static_cast<std::size_t>(buffer.id)].parts[static_cast<std::size_t>(peer)];
  return part == nullptr ? nullptr : part + offset;
}

std::byte* DeviceTransport::signal_target(const SymmetricBuffer& buffer, std::int32_t peer,
                                          std::int64_t signal_offset) const {
  // A length that fits nowhere: target() says so.
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
  bells_.ring(peer);
}

std::uint64_t DeviceTransport::wait_signal(const SymmetricBuffer& buffer, std::int64_t signal_offset,
                                           std::uint64_t value, Deadline deadline, const WaitSite& site) {
  return bells_.wait(signal_target(buffer, world_.rank, signal_offset), value, deadline, site);
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

#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

#include "bootstrap.h"
#include "net/network.h"
#include "shm/shm_transport.h"

namespace shunt::net {

/// What a rank brings to an exchange of all ranks, at most.
inline constexpr std::int64_t kRecordBytes = kSignalStride - 8;

/// The first memory of a world of several nodes: here the ranks exchange small records and notices over the
/// network itself, so that they need nobody else, such as the rank at which they met, once they have begun.
/// Layout, for each sender s: four lines (signal word, record), one word for its notices, one for its
/// inquiries.
/// Reuse: who has finished exchange e + 1 has heard in it from every peer, which therefore has finished e; so
/// the line of e may be written again in e + 2. After an exclusion counting begins anew with the two other
/// lines.
/// Threads: as Transport.
class ControlRegion {
 public:
  /// Collective. Everything given must outlive this; `node` gives the ranks of this node, by local rank.
  ControlRegion(shm::ShmTransport& node, Network& network, Bootstrap& bootstrap, const World& world,
                std::span<const std::int32_t> local_of, Deadline deadline);
  ~ControlRegion();
  ControlRegion(const ControlRegion&) = delete;
  ControlRegion& operator=(const ControlRegion&) = delete;

  /// SymmetricBuffer::id of this memory for the network.
  static constexpr std::int32_t kId = 0;

  /// Collective among the ranks that are not excluded. mine [bytes], all [R, bytes], bytes <= kRecordBytes; the
  /// records of excluded ranks are left as they were.
  void exchange(const void* mine, std::int64_t bytes, void* all, Deadline deadline, const char* phase);
  void exclude(std::span<const std::int32_t> ranks);

  /// Of a rank of another node.
  [[nodiscard]] std::uint64_t notice_of(std::int32_t rank) const noexcept;
  /// To all ranks of other nodes; `doubtful`, which may be taking nothing, comes last. Errors of the network are
  /// not reported: a rank that cannot be told learns it otherwise. None of these waits long for room.
  void publish(std::uint64_t notice, std::int32_t doubtful) noexcept;
  void inquire(std::int32_t doubtful) noexcept;
  void answer(std::uint64_t notice) noexcept;
  /// This rank ends: nothing here, nor the network, waits beyond `end` any more.
  void leave_by(Deadline end) noexcept;

 private:
  [[nodiscard]] std::int64_t line_at(std::int32_t sender, std::int64_t line) const noexcept {
    return (line * world_.size + sender) * kSignalStride;
  }
  [[nodiscard]] std::int64_t notice_at(std::int32_t sender) const noexcept { return line_at(sender, 4); }
  [[nodiscard]] std::int64_t inquiry_at(std::int32_t sender) const noexcept { return line_at(sender, 5); }
  [[nodiscard]] bool talks_to(std::int32_t rank) const noexcept {
    return local_of_[static_cast<std::size_t>(rank)] < 0 && excluded_[static_cast<std::size_t>(rank)] == 0;
  }
  [[nodiscard]] std::uint64_t word(std::int64_t offset) const noexcept;
  void send(std::int32_t rank, std::int64_t offset, std::uint64_t value,
            std::chrono::milliseconds patience) noexcept;
  void send_to_all(std::int64_t offset, std::uint64_t value, std::int32_t doubtful) noexcept;

  shm::ShmTransport& node_;
  Network& network_;
  World world_;
  std::vector<std::int32_t> local_of_;
  std::vector<std::uint8_t> excluded_;
  SymmetricBuffer memory_;         ///< Of node_
  std::uint64_t epoch_ = 0;        ///< 2^32 times the calls of exclude(), and the exchanges since
  std::vector<std::byte> drafts_;  ///< [4, kSignalStride] records as sent: the network may still read them
  std::uint64_t inquiries_ = 0;
  Deadline end_ = Deadline::max();
  std::vector<std::uint64_t> answered_;  ///< [R] last inquiry of each rank that was answered
};

}  // namespace shunt::net

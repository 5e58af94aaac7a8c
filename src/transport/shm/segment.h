#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>

#include "shm/control.h"

namespace shunt::shm {

/// The memory of one world: an anonymous file (memfd) with the control area first and then the chunks of
/// symmetric memory, in file offsets that all ranks compute alike. A chunk is [ranks, stride] bytes and a
/// tail of one page. No two chunks ever have the same offset, and the file never shrinks: a rank that was left
/// behind can reach only what it mapped before. Ownership: the file disappears when the last process that has it open or mapped ends. Threads:
/// any. The ranks of one process share one mapping per chunk (ThreadSanitizer knows memory by address).
class Segment {
 public:
  explicit Segment(std::int32_t ranks);
  /// Takes over `file`, which another process has opened as a Segment of so many ranks, and closes it also where
  /// this fails. Errors: Errc::unavailable where it is no such file or holds another cookie than this one.
  Segment(std::int32_t ranks, int file, std::uint64_t cookie);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  /// Why this machine cannot have one; empty where it can.
  [[nodiscard]] static std::string unavailable_reason();

  [[nodiscard]] std::int32_t ranks() const noexcept { return ranks_; }
  [[nodiscard]] RankSlot& slot(std::int32_t rank) const noexcept { return slots_[rank]; }
  /// Descriptor of the memory in this process; stays this object's.
  [[nodiscard]] int file() const noexcept { return file_; }
  /// By which a process that opens the file knows that it is this one.
  void set_cookie(std::uint64_t cookie) noexcept { slots_[0].cookie = cookie; }
  [[nodiscard]] std::int64_t page_bytes() const noexcept { return page_bytes_; }

  /// First offset behind the control area.
  [[nodiscard]] std::int64_t first_offset() const noexcept { return align_up(control_bytes_, granule()); }
  /// Distance between the parts of two ranks.
  [[nodiscard]] std::int64_t stride_of(std::int64_t bytes) const noexcept;
  [[nodiscard]] std::int64_t chunk_bytes(std::int64_t stride) const noexcept {
    return stride * ranks_ + page_bytes_;
  }
  [[nodiscard]] std::int64_t next_offset(std::int64_t offset, std::int64_t stride) const noexcept {
    return align_up(offset + chunk_bytes(stride), granule());
  }

  /// Maps a chunk, or takes one more share of this process's mapping of it. Null with errno on failure.
  [[nodiscard]] std::byte* map(std::int64_t offset, std::int64_t stride);
  /// Gives one share back.
  void unmap(std::int64_t offset) noexcept;
  /// Notes a rank that will not use the chunk again; the memory goes back to the system with the last one
  /// that is not `excused` ([R], or empty: nobody is), so that a rank may still read the part of a peer that
  /// was quicker to release. Chunks that were released by some before an exclusion may stay as long as the
  /// world.
  void retire(std::int64_t offset, std::int64_t stride, std::int32_t rank,
              std::span<const std::uint8_t> excused) noexcept;
  /// Gives the memory of a chunk back to the system at once.
  void discard(std::int64_t offset, std::int64_t stride) noexcept;
  /// Asks for huge pages behind a part that has no pages yet: rows are thousands of bytes at scattered
  /// places, and every one would need page table entries of its own. Does nothing where the part is small or
  /// the system refuses.
  void request_huge_pages(std::byte* address, std::int64_t bytes) const noexcept;
  /// Gets the pages of [offset, offset + bytes) of the file, mapped at `address`. Result: 0 or an errno,
  /// never SIGBUS.
  [[nodiscard]] int populate(std::byte* address, std::int64_t offset, std::int64_t bytes) const noexcept;

 private:
  struct Mapping {
    std::byte* base = nullptr;
    std::int64_t bytes = 0;
    std::int32_t shares = 0;
  };

  [[nodiscard]] static std::int64_t align_up(std::int64_t value, std::int64_t to) noexcept {
    return (value + to - 1) / to * to;
  }
  [[nodiscard]] std::int64_t granule() const noexcept;

  std::int32_t ranks_;
  std::int64_t page_bytes_;
  bool huge_pages_;  ///< Whether the system gives shared memory huge pages; the same on every rank
  int file_ = -1;
  std::int64_t control_bytes_;
  RankSlot* slots_ = nullptr;
  std::mutex mutex_;
  std::map<std::int64_t, Mapping> mappings_;  ///< By offset
};

}  // namespace shunt::shm

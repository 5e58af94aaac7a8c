#include "shm/segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include <shunt/core/error.h>

// Linux 5.14; the headers of older systems lack it, and their kernels answer EINVAL.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
// Linux 6.1, likewise.
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace shunt::shm {
namespace {

constexpr std::int64_t kHugePage = std::int64_t{2} << 20;
/// Below this the rounding to whole huge pages would waste more than it gains.
constexpr std::int64_t kHugeFrom = 2 * kHugePage;

/// Whether the system may give shared memory huge pages, be it only on request: "never" still allows the
/// request, "deny" does not.
[[nodiscard]] bool shared_huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string text;
  return std::getline(file, text) && text.find("[deny]") == std::string::npos;
}

[[nodiscard]] int create_file() {
  return memfd_create("shunt", MFD_CLOEXEC | MFD_ALLOW_SEALING);
}

/// Makes the file at least this long. A rank that was stopped here may go on when the others have made it
/// longer: the seal keeps it from cutting their memory off.
[[nodiscard]] bool grow(int file, std::int64_t bytes) {
  if (ftruncate(file, bytes) == 0) return true;
  if (errno != EPERM) return false;
  struct stat status {};
  return fstat(file, &status) == 0 && status.st_size >= bytes;
}

[[nodiscard]] std::size_t length(std::int64_t bytes) {
  return static_cast<std::size_t>(bytes);
}

}  // namespace

Segment::Segment(std::int32_t ranks)
    : ranks_(ranks),
      page_bytes_(sysconf(_SC_PAGESIZE)),
      huge_pages_(shared_huge_pages()),
      control_bytes_(align_up(static_cast<std::int64_t>(sizeof(RankSlot)) * ranks, page_bytes_)) {
  file_ = create_file();
  if (file_ < 0) throw Error(Errc::unavailable, unavailable_reason());
  // Refused nowhere that has memfd_create; without it only a resumed rank could do harm.
  static_cast<void>(fcntl(file_, F_ADD_SEALS, F_SEAL_SHRINK));
  void* control = MAP_FAILED;
  if (ftruncate(file_, control_bytes_) == 0) {
    control = mmap(nullptr, length(control_bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  }
  int error = control == MAP_FAILED ? errno : 0;
  if (error == 0) error = populate(static_cast<std::byte*>(control), 0, control_bytes_);
  if (error != 0) {
    if (control != MAP_FAILED) munmap(control, length(control_bytes_));
    close(file_);
    throw Error(Errc::unavailable, fmt::format("transport shm: {} bytes of shared memory for {} ranks: {}",
                                               control_bytes_, ranks, std::strerror(error)));
  }
  slots_ = static_cast<RankSlot*>(control);
}

Segment::Segment(std::int32_t ranks, int file, std::uint64_t cookie)
    : ranks_(ranks),
      page_bytes_(sysconf(_SC_PAGESIZE)),
      huge_pages_(shared_huge_pages()),
      file_(file),
      control_bytes_(align_up(static_cast<std::int64_t>(sizeof(RankSlot)) * ranks, page_bytes_)) {
  struct stat status {};
  void* control = MAP_FAILED;
  if (fstat(file_, &status) == 0 && status.st_size >= control_bytes_)
    control = mmap(nullptr, length(control_bytes_), PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (control != MAP_FAILED && static_cast<RankSlot*>(control)->cookie == cookie) {
    slots_ = static_cast<RankSlot*>(control);
    return;
  }
  if (control != MAP_FAILED) munmap(control, length(control_bytes_));
  close(file_);
  throw Error(Errc::unavailable,
              "transport shm: the file of another process is not the memory of this world");
}

Segment::~Segment() {
  for (const auto& [offset, mapping] : mappings_) munmap(mapping.base, length(mapping.bytes));
  munmap(slots_, length(control_bytes_));
  close(file_);
}

std::string Segment::unavailable_reason() {
  const int file = create_file();
  if (file < 0) return fmt::format("transport shm needs memfd_create: {}", std::strerror(errno));
  close(file);
  return {};
}

std::int64_t Segment::granule() const noexcept {
  return huge_pages_ ? kHugePage : page_bytes_;
}

std::int64_t Segment::stride_of(std::int64_t bytes) const noexcept {
  return align_up(bytes > 0 ? bytes : 1, huge_pages_ && bytes >= kHugeFrom ? kHugePage : page_bytes_);
}

std::byte* Segment::map(std::int64_t offset, std::int64_t stride) {
  const std::lock_guard lock(mutex_);
  Mapping& mapping = mappings_[offset];
  if (mapping.shares > 0) {
    ++mapping.shares;
    return mapping.base;
  }
  const std::int64_t bytes = chunk_bytes(stride);
  const std::int64_t slack = granule() - page_bytes_;
  void* base = MAP_FAILED;
  if (grow(file_, offset + bytes)) {
    base =
        mmap(nullptr, length(bytes + slack), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (base != MAP_FAILED) {
    auto* first = static_cast<std::byte*>(base);
    const auto misplaced = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(first) %
                                                     static_cast<std::uintptr_t>(granule()));
    const std::int64_t skip = misplaced == 0 ? 0 : granule() - misplaced;
    if (skip > 0) munmap(first, length(skip));
    if (slack > skip) munmap(first + skip + bytes, length(slack - skip));
    base = mmap(first + skip, length(bytes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE,
                file_, offset);
    if (base == MAP_FAILED) {
      const int error = errno;
      munmap(first + skip, length(bytes));
      errno = error;
    }
  }
  if (base == MAP_FAILED) {
    mappings_.erase(offset);
    return nullptr;
  }
  if (huge_pages_) madvise(base, length(bytes), MADV_HUGEPAGE);
  mapping = {static_cast<std::byte*>(base), bytes, 1};
  return mapping.base;
}

void Segment::unmap(std::int64_t offset) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = mappings_.find(offset);
  if (found == mappings_.end() || --found->second.shares > 0) return;
  munmap(found->second.base, length(found->second.bytes));
  mappings_.erase(found);
}

void Segment::retire(std::int64_t offset, std::int64_t stride, std::int32_t rank,
                     std::span<const std::uint8_t> excused) noexcept {
  std::uint64_t* retired = nullptr;  // [R] bits
  {
    const std::lock_guard lock(mutex_);
    const auto found = mappings_.find(offset);
    if (found == mappings_.end()) return;
    retired = reinterpret_cast<std::uint64_t*>(found->second.base + stride * ranks_);
  }
  // This rank still holds its share of the mapping, so the words stay mapped.
  constexpr std::int32_t kBits = 64;
  const auto bit = std::uint64_t{1} << (rank % kBits);
  const std::uint64_t own_before =
      std::atomic_ref(retired[rank / kBits]).fetch_or(bit, std::memory_order_acq_rel);
  for (std::int32_t first = 0; first < ranks_; first += kBits) {
    std::uint64_t live = 0;
    for (std::int32_t one = first; one < std::min(first + kBits, ranks_); ++one) {
      if (excused.empty() || excused[static_cast<std::size_t>(one)] == 0)
        live |= std::uint64_t{1} << (one - first);
    }
    const bool own = rank / kBits == first / kBits;
    const std::uint64_t seen =
        own ? own_before | bit : std::atomic_ref(retired[first / kBits]).load(std::memory_order_acquire);
    if ((seen & live) != live) return;
  }
  // With more ranks than a word has bits two may find themselves the last, which does no harm: the chunk's
  // place in the file is not used again.
  discard(offset, stride);
}

void Segment::discard(std::int64_t offset, std::int64_t stride) noexcept {
  // A failure keeps the memory until the world ends, which is no error of the caller.
  [[maybe_unused]] const int result =
      fallocate(file_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, chunk_bytes(stride));
}

void Segment::request_huge_pages(std::byte* address, std::int64_t bytes) const noexcept {
  if (!huge_pages_ || bytes % kHugePage != 0) return;
  // A range without any page is not collapsed; one page in each huge page's place is enough.
  for (std::int64_t at = 0; at < bytes; at += kHugePage)
    if (madvise(address + at, length(page_bytes_), MADV_POPULATE_WRITE) != 0) return;
  madvise(address, length(bytes), MADV_COLLAPSE);
}

int Segment::populate(std::byte* address, std::int64_t offset, std::int64_t bytes) const noexcept {
  int result = 0;
  do {
    result = madvise(address, length(bytes), MADV_POPULATE_WRITE);
  } while (result != 0 && (errno == EINTR || errno == EAGAIN));
  if (result == 0) return 0;
  if (errno != EINVAL) return errno == EFAULT ? ENOMEM : errno;
  // An older kernel: let the file get its pages first, since touching a page that cannot be had is SIGBUS.
  do {
    result = fallocate(file_, 0, offset, bytes);
  } while (result != 0 && errno == EINTR);
  if (result != 0) return errno;
  for (std::int64_t at = 0; at < bytes; at += page_bytes_) {
    // Adding 0 touches the page for writing and cannot lose what a peer writes meanwhile.
    std::atomic_ref(*reinterpret_cast<std::uint64_t*>(address + at)).fetch_add(0, std::memory_order_relaxed);
  }
  return 0;
}

}  // namespace shunt::shm

#include "ofi/region.h"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>

namespace shunt::ofi {

Alias::Alias(std::byte* base, std::int64_t bytes) {
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  if (bytes <= 0 || reinterpret_cast<std::uintptr_t>(base) % page != 0) return;
  // An old size of 0 asks for another mapping of the same pages; refused for memory that is not shared.
  void* mapped = mremap(base, 0, static_cast<std::size_t>(bytes), MREMAP_MAYMOVE);
  if (mapped == MAP_FAILED) return;
  base_ = static_cast<std::byte*>(mapped);
  bytes_ = static_cast<std::size_t>(bytes);
#ifdef MADV_POPULATE_WRITE
  // The pages are there; enter them here too, so that the first puts do not fault. Nothing depends on it.
  static_cast<void>(madvise(base_, bytes_, MADV_POPULATE_WRITE));
#endif
}

Alias::~Alias() {
  if (base_ != nullptr) munmap(base_, bytes_);
}

Alias::Alias(Alias&& other) noexcept
    : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Alias& Alias::operator=(Alias&& other) noexcept {
  std::swap(base_, other.base_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace shunt::ofi

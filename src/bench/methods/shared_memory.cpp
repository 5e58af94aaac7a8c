#include "shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include <shunt/core/error.h>
#include <shunt/core/host.h>

namespace shunt::bench {

SharedSizes larger(const SharedSizes& a, const SharedSizes& b) noexcept {
  return {.collective = std::max(a.collective, b.collective),
          .region = std::max(a.region, b.region),
          .tokens = std::max(a.tokens, b.tokens),
          .pack = std::max(a.pack, b.pack),
          .receive = std::max(a.receive, b.receive),
          .rows = std::max(a.rows, b.rows),
          .outputs = std::max(a.outputs, b.outputs)};
}

PrivateBuffer::PrivateBuffer(std::int64_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<std::size_t>(bytes);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    throw Error(Errc::out_of_memory,
                fmt::format("{} of {} cannot be allocated; fewer --tokens, --ranks or --methods need less",
                            what, format_bytes(bytes)));
  static_cast<void>(madvise(memory, size, MADV_HUGEPAGE));
  std::memset(memory, 0, size);
  data_ = static_cast<std::byte*>(memory);
}

PrivateBuffer::~PrivateBuffer() {
  if (data_ != nullptr) munmap(data_, static_cast<std::size_t>(bytes_));
}

PrivateBuffer::PrivateBuffer(PrivateBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

PrivateBuffer& PrivateBuffer::operator=(PrivateBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SharedMemory::SharedMemory(Transport& transport, const Workload& workload, const SharedSizes& wanted,
                           std::chrono::milliseconds deadline)
    : sizes(wanted),
      pack(wanted.pack, "the pack buffer"),
      receive(wanted.receive, "the receive buffer"),
      rows(wanted.rows, "the row buffer"),
      outputs(wanted.outputs, "the buffer of expert results"),
      combined(workload.point().tokens * workload.out_row_bytes(), "the combined tokens"),
      tokens_(workload.point().tokens * workload.row_bytes(), "the private tokens") {
  const std::int32_t group = workload.group_of(transport.world().rank);
  const auto token_bytes =
      static_cast<std::size_t>(workload.routing(group).num_tokens * workload.row_bytes());
  if (token_bytes > 0) std::memcpy(tokens_.data(), workload.token(group, 0), token_bytes);
  const auto until = [&] { return Clock::now() + deadline; };
  if (sizes.collective > 0) collectives = transport.make_collectives(sizes.collective, until());
  if (sizes.region > 0) region = transport.allocate(sizes.region, "the benchmark's put region", until());
  if (sizes.tokens > 0) {
    symmetric_tokens = transport.allocate(sizes.tokens, "the benchmark's tokens", until());
    if (token_bytes > 0) std::memcpy(symmetric_tokens.local, tokens_.data(), token_bytes);
  }
}

}  // namespace shunt::bench

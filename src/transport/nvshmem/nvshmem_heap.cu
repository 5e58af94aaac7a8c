#include "nvshmem/nvshmem_heap.h"

#include <nvshmem.h>
#include <nvshmemx.h>

#include <cstdlib>
#include <cstring>

namespace shunt::nvshmem {
namespace {

/// NVSHMEM is one for the process.
struct Started {
  bool running = false;
  bool in_use = false;
  bool broken = false;           ///< A heap was closed without the others
  bool closed_together = false;  ///< The last one
  std::int32_t rank = -1;
  std::int32_t size = 0;
};
Started started;

/// Finalising is collective and has no deadline, so it is left out where some rank may be gone.
void finalise_at_exit() {
  if (started.running && started.closed_together && !started.broken && !started.in_use) nvshmem_finalize();
}

void require(const char* what, int status) {
  if (status == 0) return;
  throw Error(Errc::unavailable, std::string(what) + " failed with status " + std::to_string(status) +
                                     " (NVSHMEM_DEBUG=INFO makes NVSHMEM say why)");
}

void start(const heap::HeapOptions& options) {
  if (started.broken)
    throw Error(Errc::unavailable,
                "an earlier world of this process ended without some of its ranks, and NVSHMEM "
                "cannot be started again in the same process");
  if (started.in_use)
    throw Error(Errc::unavailable, "this process has another world on NVSHMEM, which has one");
  if (started.running) {
    if (started.rank == options.rank && started.size == options.size) return;
    throw Error(Errc::unavailable, "this process was rank " + std::to_string(started.rank) + " of " +
                                       std::to_string(started.size) + " on NVSHMEM and would be rank " +
                                       std::to_string(options.rank) + " of " + std::to_string(options.size) +
                                       " now; NVSHMEM keeps the first world of a process");
  }
  nvshmemx_uniqueid_t id;
  if (options.unique_id.size() != sizeof id)
    throw Error(Errc::internal, "an identifier of another size than NVSHMEM's");
  std::memcpy(&id, options.unique_id.data(), sizeof id);
  nvshmemx_init_attr_t attributes = NVSHMEMX_INIT_ATTR_INITIALIZER;
  require("nvshmemx_set_attr_uniqueid_args",
          nvshmemx_set_attr_uniqueid_args(options.rank, options.size, &id, &attributes));
  require("nvshmemx_init_attr", nvshmemx_init_attr(NVSHMEMX_INIT_WITH_UNIQUEID, &attributes));
  started = {.running = true, .rank = options.rank, .size = options.size};
  std::atexit(finalise_at_exit);
}

/// What the user has asked NVSHMEM for; it has no function that says what it took.
std::string transport_by_environment() {
  const char* remote = std::getenv("NVSHMEM_REMOTE_TRANSPORT");
  const char* gpu = std::getenv("NVSHMEM_IB_ENABLE_IBGDA");
  const std::string name = remote == nullptr || *remote == '\0' ? "ibrc" : remote;
  return gpu != nullptr && std::strcmp(gpu, "1") == 0 ? name + "+ibgda" : name;
}

}  // namespace

NvshmemHeap::NvshmemHeap(const heap::HeapOptions& options) {
  start(options);
  started.in_use = true;
  provider_ = transport_by_environment();
  queue_ = std::make_unique<heap::GpuQueue>();
}

NvshmemHeap::~NvshmemHeap() = default;

std::int64_t NvshmemHeap::available() {
  queue_->enter();
  return heap::GpuQueue::available();
}

std::byte* NvshmemHeap::allocate(std::int32_t slot, std::int64_t bytes) {
  queue_->enter();
  memory_.resize(std::max(memory_.size(), static_cast<std::size_t>(slot) + 1));
  // "NVSHMEM_MALLOC": collective, ends with a barrier, null where there is no room. Rows want cache lines.
  auto* memory = static_cast<std::byte*>(nvshmem_align(128, static_cast<std::size_t>(bytes)));
  memory_[static_cast<std::size_t>(slot)] = memory;
  if (memory != nullptr) queue_->zero(memory, bytes);
  return memory;
}

void NvshmemHeap::release(std::int32_t slot) {
  queue_->enter();
  std::byte*& memory = memory_.at(static_cast<std::size_t>(slot));
  if (memory != nullptr) nvshmem_free(memory);
  memory = nullptr;
}

std::byte* NvshmemHeap::peer_pointer(std::int32_t slot, std::int32_t peer) {
  // "NVSHMEM_PTR": null where the peer's memory cannot be loaded and stored.
  return static_cast<std::byte*>(nvshmem_ptr(memory(slot), peer));
}

void NvshmemHeap::copy(void* to, const void* from, std::int64_t bytes) {
  queue_->enter();
  queue_->copy(to, from, bytes);
}

void NvshmemHeap::store_signal(std::byte* word, std::uint64_t value) {
  queue_->enter();
  queue_->store(word, value);
}

void NvshmemHeap::put(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::int32_t from_slot,
                      std::int64_t from_offset, std::int64_t bytes) {
  queue_->enter();
  nvshmemx_putmem_nbi_on_stream(memory(slot) + offset, memory(from_slot) + from_offset,
                                static_cast<std::size_t>(bytes), peer, queue_->stream());
}

void NvshmemHeap::put_signal(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::uint64_t value) {
  queue_->enter();
  // "Memory Ordering": quiet completes puts at their targets; the signal is started after that.
  nvshmemx_quiet_on_stream(queue_->stream());
  nvshmemx_signal_op_on_stream(reinterpret_cast<std::uint64_t*>(memory(slot) + offset), value,
                               NVSHMEM_SIGNAL_SET, peer, queue_->stream());
}

std::uint64_t NvshmemHeap::load_signal(const std::byte* word) {
  queue_->enter();
  return queue_->load(word);
}

void NvshmemHeap::quiet() {
  queue_->enter();
  nvshmemx_quiet_on_stream(queue_->stream());
  queue_->synchronize();
}

// An address of the own part names the same object on every PE.
void NvshmemHeap::put_signal(std::int32_t peer, const SymmetricBuffer& to, std::int64_t offset,
                             const void* from, std::int64_t bytes, const SymmetricBuffer& words,
                             std::int64_t word, std::uint64_t value, void* stream) {
  auto* const signal = reinterpret_cast<std::uint64_t*>(words.local + word);
  auto* const queue = static_cast<cudaStream_t>(stream);
  if (bytes == 0) {
    nvshmemx_signal_op_on_stream(signal, value, NVSHMEM_SIGNAL_SET, peer, queue);
    return;
  }
  // "NVSHMEM_PUT_SIGNAL_NBI": the signal is updated after the data of the same call has been delivered.
  nvshmemx_putmem_signal_nbi_on_stream(to.local + offset, from, static_cast<std::size_t>(bytes), signal,
                                       value, NVSHMEM_SIGNAL_SET, peer, queue);
}

void NvshmemHeap::wait(const SymmetricBuffer& words, std::int64_t word, std::uint64_t value, void* stream) {
  nvshmemx_signal_wait_until_on_stream(reinterpret_cast<std::uint64_t*>(words.local + word), NVSHMEM_CMP_GE,
                                       value, static_cast<cudaStream_t>(stream));
}

void NvshmemHeap::all_to_all(const SymmetricBuffer& to, std::int64_t offset, const void* from,
                             std::int64_t bytes, void* stream) {
  const int status =
      nvshmemx_alltoallmem_on_stream(NVSHMEM_TEAM_WORLD, to.local + offset, from,
                                     static_cast<std::size_t>(bytes), static_cast<cudaStream_t>(stream));
  if (status != 0)
    throw Error(Errc::internal, "nvshmemx_alltoallmem_on_stream: status " + std::to_string(status));
}

void NvshmemHeap::close(bool together) noexcept {
  started.in_use = false;
  started.closed_together = together;
  started.broken = started.broken || !together;
}

std::string description() {
  int major = 0;
  int minor = 0;
  int patch = 0;
  nvshmemx_vendor_get_version_info(&major, &minor, &patch);
  return "NVSHMEM " + std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
}

heap::Preflight preflight(const heap::HeapOptions& options) {
  return heap::choose_gpu(options);
}

std::vector<std::byte> unique_id() {
  nvshmemx_uniqueid_t id = NVSHMEMX_UNIQUEID_INITIALIZER;
  require("nvshmemx_get_uniqueid", nvshmemx_get_uniqueid(&id));
  std::vector<std::byte> bytes(sizeof id);
  std::memcpy(bytes.data(), &id, sizeof id);
  return bytes;
}

}  // namespace shunt::nvshmem

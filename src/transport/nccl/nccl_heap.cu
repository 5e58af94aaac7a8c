#include "nccl/nccl_heap.h"

#include <cstring>
#include <string>
#include <utility>

namespace shunt::nccl {
namespace {

[[nodiscard]] std::string built_for() {
  return std::to_string(NCCL_MAJOR) + "." + std::to_string(NCCL_MINOR) + "." + std::to_string(NCCL_PATCH);
}

/// Where a window lies on the ranks of the LSA team, whose ranks in the world are first + i * stride. By a kernel: 2.28 has
/// no function of the host that says so.
__global__ void find_peers(ncclWindow_t window, std::int32_t first, std::int32_t stride, std::int32_t count,
                           std::byte** found) {
  for (std::int32_t i = 0; i < count; ++i)
    found[first + i * stride] = static_cast<std::byte*>(ncclGetLsaPointer(window, 0, i));
}

/// One warp. "Device API: GIN": put.
__global__ void put_bytes(const __grid_constant__ ncclDevComm comm, std::int32_t peer, ncclWindow_t to,
                          std::size_t to_offset, ncclWindow_t from, std::size_t from_offset,
                          std::size_t bytes) {
  const ncclGin gin(comm, 0);
  gin.put(ncclTeamWorld(comm), peer, to, to_offset, from, from_offset, bytes, ncclGin_None{}, ncclGin_None{},
          ncclCoopWarp());
}

#if NCCL_VERSION_CODE >= 22907
/// One thread. A strong signal: visible once all puts to that peer before, on this context, are settled.
__global__ void add_to_word(const __grid_constant__ ncclDevComm comm, std::int32_t peer, ncclWindow_t window,
                            std::size_t offset, std::uint64_t delta) {
  const ncclGin gin(comm, 0);
  gin.signal(ncclTeamWorld(comm), peer, AddToWord{window, offset, delta});
}
#endif

/// "readSignal" for words of a window, and what it does where a version has it for numbered signals only.
template <class Gin>
__device__ std::uint64_t read_signal(const Gin& gin, ncclWindow_t window, std::size_t offset) {
  if constexpr (requires { gin.readSignal(window, offset); }) {
    return gin.readSignal(window, offset);
  } else {
    device::CudaContext context;
    return context.load_acquire(device::Scope::system,
                                static_cast<std::uint64_t*>(ncclGetLocalPointer(window, offset)));
  }
}

/// One thread. Words that the network adds to are read by its own means, and only then is what came before them there.
__global__ void read_word(const __grid_constant__ ncclDevComm comm, ncclWindow_t window, std::size_t offset,
                          std::uint64_t* seen) {
  const ncclGin gin(comm, 0);
  *seen = read_signal(gin, window, offset);
}

/// One warp. Sources may be reused afterwards; what was put arrives without further calls.
__global__ void flush_puts(const __grid_constant__ ncclDevComm comm) {
  const ncclGin gin(comm, 0);
  gin.flush(ncclCoopWarp());
}

}  // namespace

void require(const char* what, ncclResult_t result, ncclComm_t comm) {
  if (result == ncclSuccess) return;
  const char* more = ncclGetLastError(comm);
  std::string text = std::string(what) + ": " + ncclGetErrorString(result);
  if (more != nullptr && *more != '\0') text += std::string(" (") + more + ")";
  throw Error(result == ncclInvalidUsage ? Errc::unavailable : Errc::internal,
              text + "; NCCL_DEBUG=INFO makes NCCL say more");
}

NcclHeap::NcclHeap(const heap::HeapOptions& options) : size_(options.size) {
  ncclUniqueId id;
  if (options.unique_id.size() != sizeof id)
    throw Error(Errc::internal, "an identifier of another size than NCCL's");
  std::memcpy(&id, options.unique_id.data(), sizeof id);
  queue_ = std::make_unique<heap::GpuQueue>();
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  require("ncclCommInitRankConfig", ncclCommInitRankConfig(&comm_, size_, id, options.rank, &config));
  network_ = ncclTeamLsa(comm_).nRanks < size_;
  // "Cross-Version Compatibility": kernels that use GIN must be of the very version of the library.
  int version = 0;
  require("ncclGetVersion", ncclGetVersion(&version));
  if (network_ && version != NCCL_VERSION_CODE) {
    throw Error(Errc::unavailable,
                "kernels put over the network only with the NCCL that they were built for, which is " +
                    built_for() + "; the loader finds " + description());
  }
  if (network_) {
    // A network without signals that are words still carries puts, and kernels have numbered signals. Each rank falls back
    // by itself, though both calls are collective: the refusal comes from the plugin that NCCL has loaded, so all nodes
    // must have the same one. A rank that is refused alone leaves the others in their first call, which no word from it
    // could end: NCCL has no deadline there.
    has_words_ = kHasWindowSignals;
    ncclDevCommRequirements needed = requirements(0, true, has_words_);
    ncclResult_t made = ncclDevCommCreate(comm_, &needed, &device_comm_);
    if (made == ncclInvalidUsage && has_words_) {
      has_words_ = false;
      needed = requirements(0, true, has_words_);
      made = ncclDevCommCreate(comm_, &needed, &device_comm_);
    }
    require("ncclDevCommCreate", made, comm_);
    has_device_comm_ = true;
  }
  heap::require_cuda("cudaMalloc", cudaMalloc(reinterpret_cast<void**>(&pointers_),
                                              static_cast<std::size_t>(size_) * sizeof *pointers_));
}

NcclHeap::~NcclHeap() {
  static_cast<void>(cudaFree(pointers_));
}

std::int64_t NcclHeap::available() {
  queue_->enter();
  return heap::GpuQueue::available();
}

std::byte* NcclHeap::allocate(std::int32_t number, std::int64_t bytes) {
  queue_->enter();
  slots_.resize(std::max(slots_.size(), static_cast<std::size_t>(number) + 1));
  Slot& slot = slots_[static_cast<std::size_t>(number)];
  // Registering is collective: a rank without memory must say so first, and here it cannot. HeapTransport has compared what
  // is free, so this fails only where memory is in pieces; the error ends the rank, and the others lose it.
  require("ncclMemAlloc", ncclMemAlloc(&slot.memory, static_cast<std::size_t>(bytes)), comm_);
  slot.bytes = bytes;
  queue_->zero(static_cast<std::byte*>(slot.memory), bytes);
  require("ncclCommWindowRegister",
          ncclCommWindowRegister(comm_, slot.memory, static_cast<std::size_t>(bytes), &slot.window,
                                 window_flags(has_words_)),
          comm_);
  // Without symmetric memory the call succeeds and gives none ("Window Registration").
  if (slot.window == nullptr) {
    throw Error(Errc::unavailable,
                "NCCL gives no symmetric window on this system (it needs cuMem, NCCL_CUMEM_ENABLE, and "
                "GPUs of a node that reach each other's memory)");
  }
  slot.peers.assign(static_cast<std::size_t>(size_), nullptr);
  const ncclTeam lsa = ncclTeamLsa(comm_);
  const std::int32_t first = ncclTeamRankToWorld(comm_, lsa, 0);
  const auto size = static_cast<std::size_t>(size_) * sizeof *pointers_;
  heap::require_cuda("cudaMemsetAsync", cudaMemsetAsync(pointers_, 0, size, queue_->stream()));
  find_peers<<<1, 1, 0, queue_->stream()>>>(slot.window, first, lsa.stride, lsa.nRanks, pointers_);
  heap::require_cuda("find_peers", cudaGetLastError());
  queue_->copy(slot.peers.data(), pointers_, static_cast<std::int64_t>(size));
  queue_->synchronize();
  return static_cast<std::byte*>(slot.memory);
}

void NcclHeap::release(std::int32_t number) {
  queue_->enter();
  Slot& slot = slots_.at(static_cast<std::size_t>(number));
  if (slot.window != nullptr)
    require("ncclCommWindowDeregister", ncclCommWindowDeregister(comm_, slot.window), comm_);
  if (slot.memory != nullptr) require("ncclMemFree", ncclMemFree(slot.memory), comm_);
  slot = {};
  words_.erase(words_.lower_bound({number, 0, 0}), words_.lower_bound({number + 1, 0, 0}));
}

std::byte* NcclHeap::peer_pointer(std::int32_t slot, std::int32_t peer) {
  return slots_.at(static_cast<std::size_t>(slot)).peers[static_cast<std::size_t>(peer)];
}

void NcclHeap::copy(void* to, const void* from, std::int64_t bytes) {
  queue_->enter();
  queue_->copy(to, from, bytes);
}

void NcclHeap::store_signal(std::byte* word, std::uint64_t value) {
  queue_->enter();
  queue_->store(word, value);
}

void NcclHeap::put(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::int32_t from_slot,
                   std::int64_t from_offset, std::int64_t bytes) {
  queue_->enter();
  put_bytes<<<1, 32, 0, queue_->stream()>>>(
      device_comm_, peer, window(slot), static_cast<std::size_t>(offset), window(from_slot),
      static_cast<std::size_t>(from_offset), static_cast<std::size_t>(bytes));
  heap::require_cuda("put_bytes", cudaGetLastError());
}

void NcclHeap::put_signal(std::int32_t peer, std::int32_t slot, std::int64_t offset, std::uint64_t value) {
  if (!has_words_) {
    throw Error(Errc::unavailable,
                "transport nccl: a signal from the host to rank " + std::to_string(peer) +
                    " across the network needs " +
                    (kHasWindowSignals ? "a network plugin with strong signals at addresses of a window, and "
                                         "this one has none"
                                       : "NCCL 2.29.7, this build has " + built_for()) +
                    "; signals of kernels do not");
  }
#if NCCL_VERSION_CODE >= 22907
  queue_->enter();
  std::uint64_t& last = words_[{slot, peer, offset}];
  add_to_word<<<1, 1, 0, queue_->stream()>>>(
      device_comm_, peer, window(slot), static_cast<std::size_t>(offset), value - std::exchange(last, value));
  heap::require_cuda("add_to_word", cudaGetLastError());
#else
  static_cast<void>(slot);
  static_cast<void>(offset);
  static_cast<void>(value);
#endif
}

std::uint64_t NcclHeap::load_signal(const std::byte* word) {
  queue_->enter();
  for (const Slot& slot : slots_) {
    const std::byte* const memory = static_cast<const std::byte*>(slot.memory);
    if (!has_words_ || memory == nullptr || word < memory || word >= memory + slot.bytes) continue;
    return queue_->look([&](cudaStream_t stream, std::uint64_t* seen) {
      read_word<<<1, 1, 0, stream>>>(device_comm_, slot.window, static_cast<std::size_t>(word - memory),
                                     seen);
      heap::require_cuda("read_word", cudaGetLastError());
    });
  }
  return queue_->load(word);
}

void NcclHeap::quiet() {
  queue_->enter();
  if (network_) {
    flush_puts<<<1, 32, 0, queue_->stream()>>>(device_comm_);
    heap::require_cuda("flush_puts", cudaGetLastError());
  }
  queue_->synchronize();
}

void NcclHeap::close(bool together) noexcept {
  if (comm_ == nullptr) return;
  if (together) {
    if (has_device_comm_) static_cast<void>(ncclDevCommDestroy(comm_, &device_comm_));
    static_cast<void>(ncclCommDestroy(comm_));
  } else {
    static_cast<void>(ncclCommAbort(comm_));
  }
  comm_ = nullptr;
}

std::string description() {
  int version = 0;
  static_cast<void>(ncclGetVersion(&version));
  return "NCCL " + std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

heap::Preflight preflight(const heap::HeapOptions& options) {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return {.reason = "ncclGetVersion fails"};
  // Before 2.29 the structures that device code and library share carry no version.
  const bool same = version / 100 == NCCL_VERSION_CODE / 100;
  if (version < NCCL_VERSION_CODE || (NCCL_VERSION_CODE < 22900 && !same)) {
    return {.reason =
                "the loader finds " + description() + ", and this build was made for NCCL " + built_for()};
  }
  return heap::choose_gpu(options);
}

std::vector<std::byte> unique_id() {
  ncclUniqueId id;
  require("ncclGetUniqueId", ncclGetUniqueId(&id));
  std::vector<std::byte> bytes(sizeof id);
  std::memcpy(bytes.data(), &id, sizeof id);
  return bytes;
}

}  // namespace shunt::nccl

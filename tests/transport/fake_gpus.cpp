#include "transport/fake_gpus.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include <shunt/core/error.h>
#include <shunt/core/random.h>

namespace shunt::testing_support {
namespace {

using cuda_ipc::DeviceFacts;
using cuda_ipc::DeviceId;
using cuda_ipc::DeviceMemory;

constexpr std::int64_t kGranule = 64 << 10;

/// One allocation as this process has mapped it.
struct Mapping {
  std::int64_t bytes = 0;
  std::byte* memory = nullptr;  ///< Where the CPU can reach it
  int file = -1;
  std::int32_t shares = 0;
  std::int64_t* used = nullptr;  ///< To give back, where this process allocated it
};

struct Mappings {
  std::mutex mutex;
  std::map<std::uintptr_t, Mapping> by_address;
};

Mappings& mappings() {
  static Mappings all;
  return all;
}

/// Where the CPU reaches `at`: itself, or what stands behind a device address.
std::byte* reachable(const void* at, std::int64_t bytes) {
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  Mappings& all = mappings();
  const std::lock_guard lock(all.mutex);
  auto next = all.by_address.upper_bound(address);
  if (next != all.by_address.begin()) {
    --next;
    const Mapping& mapping = next->second;
    const auto offset = static_cast<std::int64_t>(address - next->first);
    if (offset < mapping.bytes) {
      if (offset + bytes > mapping.bytes)
        throw Error(Errc::internal, "fake GPU: a copy leaves its allocation");
      return mapping.memory + offset;
    }
  }
  return static_cast<std::byte*>(const_cast<void*>(at));
}

std::byte* map_file(int file, std::int64_t bytes, std::int64_t* used) {
  const auto size = static_cast<std::size_t>(bytes);
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  void* address = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || address == MAP_FAILED)
    throw Error(Errc::unavailable, "fake GPU: memory cannot be mapped");
  Mappings& all = mappings();
  const std::lock_guard lock(all.mutex);
  all.by_address[reinterpret_cast<std::uintptr_t>(address)] = {
      .bytes = bytes, .memory = static_cast<std::byte*>(memory), .file = file, .shares = 1, .used = used};
  return static_cast<std::byte*>(address);
}

bool fails(std::int32_t& left) {
  return left > 0 && left-- > 0;
}

class FakeGpu final : public cuda_ipc::DeviceApi {
 public:
  FakeGpu(const FakeGpuOptions& options, std::int32_t ordinal, std::int64_t* used,
          const FakeGpuFaults& faults, std::uint64_t seed)
      : options_(options), used_(used + ordinal), faults_(faults), random_(seed) {
    facts_.id[0] = static_cast<std::byte>(1 + ordinal);
    facts_.ordinal = ordinal;
    facts_.name = "Fake GPU";
    facts_.shares_with_processes = options.exports_files;
  }

  [[nodiscard]] const DeviceFacts& device() const noexcept override { return facts_; }
  [[nodiscard]] DeviceMemory memory() override {
    return {.free_bytes = options_.bytes_each - std::atomic_ref(*used_).load(),
            .total_bytes = options_.bytes_each};
  }
  [[nodiscard]] std::optional<bool> reaches(const DeviceId& other) override {
    return options_.connected || other == facts_.id;
  }
  [[nodiscard]] std::int64_t granule() const noexcept override { return kGranule; }

  [[nodiscard]] std::byte* allocate(std::int64_t bytes) override {
    if (bytes % kGranule != 0)
      throw Error(Errc::internal, "fake GPU: an allocation is no multiple of its unit");
    const bool full = std::atomic_ref(*used_).fetch_add(bytes) + bytes > options_.bytes_each;
    if (fails(faults_.allocations) || full) {
      std::atomic_ref(*used_).fetch_sub(bytes);
      throw Error(Errc::out_of_memory, "could not get its memory on the fake GPU");
    }
    // Named as the worlds' memory is, so that tests that count that count this too.
    const int file = memfd_create("shunt_fake_gpu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, bytes) != 0) throw Error(Errc::unavailable, "fake GPU: no memfd");
    return map_file(file, bytes, used_);
  }
  [[nodiscard]] int export_file(const std::byte* memory) override {
    if (fails(faults_.exports)) throw Error(Errc::unavailable, "the fake GPU exports nothing");
    Mappings& all = mappings();
    const std::lock_guard lock(all.mutex);
    return fcntl(all.by_address.at(reinterpret_cast<std::uintptr_t>(memory)).file, F_DUPFD_CLOEXEC, 0);
  }
  [[nodiscard]] std::byte* import_file(int file, std::int64_t bytes) override {
    if (fails(faults_.imports)) throw Error(Errc::unavailable, "the fake GPU imports nothing");
    return map_file(fcntl(file, F_DUPFD_CLOEXEC, 0), bytes, nullptr);
  }
  [[nodiscard]] std::byte* share(std::byte* memory) override {
    if (fails(faults_.imports)) throw Error(Errc::unavailable, "the fake GPU imports nothing");
    Mappings& all = mappings();
    const std::lock_guard lock(all.mutex);
    const auto found = all.by_address.find(reinterpret_cast<std::uintptr_t>(memory));
    if (found == all.by_address.end())
      throw Error(Errc::unavailable, "the memory has been released meanwhile");
    ++found->second.shares;
    return memory;
  }
  void release(std::byte* memory) noexcept override {
    synchronize();
    Mappings& all = mappings();
    const std::lock_guard lock(all.mutex);
    const auto found = all.by_address.find(reinterpret_cast<std::uintptr_t>(memory));
    if (found == all.by_address.end() || --found->second.shares > 0) return;
    const Mapping mapping = found->second;
    all.by_address.erase(found);
    munmap(mapping.memory, static_cast<std::size_t>(mapping.bytes));
    munmap(memory, static_cast<std::size_t>(mapping.bytes));
    close(mapping.file);
    if (mapping.used != nullptr) std::atomic_ref(*mapping.used).fetch_sub(mapping.bytes);
  }

  void copy(void* to, const void* from, std::int64_t bytes) override {
    started_.push_back({.to = to, .from = from, .bytes = bytes});
    go_on();
  }
  void store_signal(std::byte* word, std::uint64_t value) override {
    started_.push_back({.to = word, .value = value});
    go_on();
  }
  [[nodiscard]] std::uint64_t load_signal(const std::byte* word) override {
    auto* plain = reinterpret_cast<std::uint64_t*>(reachable(word, 8));
    return std::atomic_ref(*plain).load(std::memory_order_acquire);
  }
  void synchronize() override {
    while (!started_.empty()) finish_first();
  }

 private:
  struct Operation {
    void* to = nullptr;
    const void* from = nullptr;  ///< Null: a signal
    std::int64_t bytes = 8;
    std::uint64_t value = 0;
  };

  void go_on() {
    for (std::uint64_t some = random_.below(3); some > 0 && !started_.empty(); --some) finish_first();
  }
  void finish_first() {
    const Operation first = started_.front();
    started_.pop_front();
    std::byte* to = reachable(first.to, first.bytes);
    if (first.from == nullptr) {
      std::atomic_ref(*reinterpret_cast<std::uint64_t*>(to)).store(first.value, std::memory_order_release);
    } else {
      std::memcpy(to, reachable(first.from, first.bytes), static_cast<std::size_t>(first.bytes));
    }
  }

  FakeGpuOptions options_;
  DeviceFacts facts_;
  std::int64_t* used_;
  FakeGpuFaults faults_;
  Random random_;
  std::deque<Operation> started_;
};

}  // namespace

FakeGpus::FakeGpus(const FakeGpuOptions& options) : options_(options) {
  void* memory = mmap(nullptr, static_cast<std::size_t>(options.devices) * sizeof *used_,
                      PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error(Errc::unavailable, "no shared page for fake GPUs");
  used_ = static_cast<std::int64_t*>(memory);
}

FakeGpus::~FakeGpus() {
  munmap(used_, static_cast<std::size_t>(options_.devices) * sizeof *used_);
}

std::unique_ptr<cuda_ipc::DeviceApi> FakeGpus::open(std::int32_t local_rank,
                                                    const FakeGpuFaults& faults) const {
  return std::make_unique<FakeGpu>(options_, local_rank % options_.devices, used_, faults,
                                   static_cast<std::uint64_t>(local_rank));
}

std::int64_t FakeGpus::used(std::int32_t device) const {
  return std::atomic_ref(used_[device]).load();
}

std::int64_t fake_gpu_mappings() {
  Mappings& all = mappings();
  const std::lock_guard lock(all.mutex);
  return static_cast<std::int64_t>(all.by_address.size());
}

}  // namespace shunt::testing_support
